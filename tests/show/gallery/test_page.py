"""The page: everything is text, nothing is fetched, nothing of a file but its pixels is in it."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from medvlp import DataCard, ZeroShot
from medvlp.show import failures, label_noise_suspects
from medvlp.show.gallery.page import picture_uri, write_page
from tests.methods.small import make_card, make_set

HOSTILE = {
    "<script>alert(1)</script>": ["spots <img src=x onerror=alert(2)>", "$x^2$ dots"],
    'nevus" onmouseover="alert(3)': ["</style><script>alert(4)</script>", "rim & edge"],
    "{{ 7 * 7 }}": ["{% raise %}", "<!-- hidden", "lone \ud800 half"],
}


def text_of(page: BeautifulSoup) -> str:
    """The text of a page, words apart."""
    return " ".join(page.get_text(" ").split())


def hostile_card(**facts) -> DataCard:
    front = make_card().model_dump(exclude={"prose", "path"})
    front["classes"] = [
        {"name": name, "knowledge": {"symptoms": [{"text": p} for p in phrases if "\ud800" not in p]}}
        for name, phrases in HOSTILE.items()
    ]
    return DataCard.model_validate(front | {"title": "<b>title</b>", "licence": "<i>own</i>"} | facts)


def page_of(clip, card, path, show_ids=None):
    images, train = make_set(card, [0, 1, 2] * 4, "test"), make_set(card, [0, 1, 2] * 3)
    found = failures(
        ZeroShot(clip, card, symptoms=HOSTILE if card.classnames == list(HOSTILE) else None), images, train
    )
    assert len(found) > 2
    found.table["note"] = "<u>note</u>"
    html = found.to_html(path, show_ids=show_ids).read_text(encoding="utf-8")
    return found, images, train, BeautifulSoup(html, "html.parser")


def test_hostile_names_and_symptoms_are_text(clip, tmp_path):
    found, _, _, page = page_of(clip, hostile_card(), tmp_path / "page.html")
    names = {tag.name for tag in page.find_all()}
    assert not names & {"script", "b", "i", "u", "iframe", "object", "link", "base", "form"}
    assert len(page.find_all("style")) == 1
    assert not [a for tag in page.find_all() for a in tag.attrs if a.startswith("on")]
    for word in ["<script>alert(1)</script>", "<b>title</b>", "<i>own</i>", "<u>note</u>"]:
        assert word in text_of(page)
    argued = found.symptoms[found.symptoms["argued"] > 0]
    for symptom in argued.groupby(["image", "classname"]).head(1)["symptom"]:
        assert symptom.replace("\ud800", "\\ud800") in text_of(page)
    assert page.body.attrs == {"class": ["tex2jax_ignore", "mathjax_ignore"]}


def test_the_page_asks_for_nothing_and_forbids_asking(clip, tmp_path):
    path = tmp_path / "page.html"
    *_, page = page_of(clip, make_card(), path)
    for tag in page.find_all():
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            value = tag.get(name) or "#"
            assert value.startswith("#") or (
                tag.name == "img" and value.startswith("data:image/jpeg;base64,")
            )
    html = path.read_text()
    assert not re.search(r"url\(|@import|https?:", html)
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert (
        policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    )


def test_the_page_can_be_read_with_a_screen_reader_and_in_the_dark(clip, tmp_path):
    path = tmp_path / "page.html"
    found, _, _, page = page_of(clip, make_card(), path)
    pictures = page.find_all("img")
    assert len(pictures) == len(found) + len(found.neighbours)
    assert all(picture["alt"] for picture in pictures)
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("h[1-6]"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    places = {link["href"][1:] for link in page.find_all("a")}
    assert places <= {tag["id"] for tag in page.find_all(id=True)}
    assert len(places) == len(found.pairs())
    assert "prefers-color-scheme: dark" in path.read_text() and page.html["lang"] == "en"
    row = found.table.iloc[0]
    assert f"Image {row['image']}" in text_of(page) and f"{row['confidence']:.3f}" in text_of(page)


@pytest.mark.parametrize(
    ("redistribution", "show_ids", "shown"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_ids_are_shown_where_the_card_allows_or_when_asked(clip, tmp_path, redistribution, show_ids, shown):
    card = hostile_card(redistribution=redistribution)
    path = tmp_path / "page.html"
    found, images, train, page = page_of(clip, card, path, show_ids)
    html = path.read_text()
    here = [images.ids[i] for i in found.table["image"]] + [
        train.ids[i] for i in found.neighbours["neighbour"]
    ]
    assert [name in html for name in here] == [shown] * len(here)
    assert ("does not allow" in text_of(page)) == (not redistribution)


def test_pictures_are_pixels_alone():
    image = Image.new("RGB", (400, 200), (200, 30, 30))
    raw = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "patient 7"
    image.save(raw, "JPEG", comment=b"patient 7", exif=exif, icc_profile=b"patient 7")
    uri = picture_uri(Image.open(raw), 100)
    made = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert b"patient" in raw.getvalue() and b"patient" not in made
    small = Image.open(io.BytesIO(made))
    assert small.size == (100, 50) and np.abs(np.asarray(small).mean(axis=(0, 1)) - [200, 30, 30]).max() < 3


def test_several_galleries_share_a_page_with_their_own_words(clip, data, tmp_path):
    train, test = data.train.subset(range(100)), data.test.subset(range(60))
    shown = test.latents.attributes[:, 0]
    found = failures(torch.stack([shown, ~shown], dim=1).float(), test, train, clip)
    suspects = label_noise_suspects(train, clip)
    assert len(suspects)
    page = BeautifulSoup(found.to_html(tmp_path / "page.html", suspects).read_text(), "html.parser")
    for words in (found.title, suspects.title, "Failure gallery", "misled by: veil present (1.2)"):
        assert words in text_of(page)
    for words in ("the best rule says", "suggested", "nearest images are"):
        assert words in text_of(page)
    assert page.img["alt"].startswith(f"image {found.pair(*found.pairs().iloc[0, :2]).table['image'][0]},")


def test_a_page_that_fails_leaves_the_old_one(clip, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="at least one gallery"):
        write_page(path, [])
    card = make_card()
    found = failures(torch.zeros(3, 3), make_set(card, [0, 1, 2]))
    found.table["image"] = 99
    with pytest.raises(IndexError):
        found.to_html(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
