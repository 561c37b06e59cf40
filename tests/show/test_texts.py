"""Text of cards and models stays text in every table and page: no mathematics, no escape sequence."""

import dataclasses
import inspect
import json
import re
from typing import get_type_hints

import pandas as pd
import pytest
from bs4 import BeautifulSoup

import medvlp
import medvlp.show
from medvlp import DataCard
from medvlp.data.card_parts import Attribute
from medvlp.data.html import Table, literal
from tests.show.widgets.test_widgets import shown_html

NEVUS = "a \x1b[31m $x_1$ \u202e \\(y\\) <b>nevus</b>"
MELANOMA = "melanoma $x^2$ \x07"
VEIL, DOTS = "a $\\frac{a}{b}$ veil \x1b]0;me\x07", "\\(z\\) dots \u2066"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWS_NO_TEXT_OF_CARDS = {"fit", "pretrain", "pretrain_annotated"}


def typeset(page: str) -> list[str]:
    """The texts of a page that MathJax would typeset."""
    texts = BeautifulSoup(page, "html.parser").find_all(string=re.compile(r"\$|\\\("))
    return [text for text in texts if text.find_parent(class_="mathjax_ignore") is None]


@pytest.fixture(scope="module")
def hostile(clip, data) -> dict:
    """A card whose names and symptoms would act, images of it, and methods."""
    front = data.card.model_dump()
    front |= {"title": f"Moles {NEVUS}", "citation": NEVUS, "licence": NEVUS, "redistribution": False}
    for info, name, phrase in zip(front["classes"], (MELANOMA, NEVUS), (VEIL, DOTS), strict=True):
        info |= {
            "name": name,
            "aliases": [],
            "knowledge": {"symptoms": [{"text": phrase}, {"text": "light"}]},
        }
    card = DataCard.model_validate(front)
    some = data.test.subset(range(40))  # as images that are no phantoms, for a world has its own names
    images = medvlp.ImageSet(card, "test", some.ids, some.labels, some.groups, some.store)
    parts = {name: images for name in ("train", "val", "test")}
    phantoms = data.test.subset(range(12))
    lists = {"melanoma": [VEIL, "black dots"], "nevus": [DOTS, "a clean rim"]}
    return {
        "card": card,
        "images": images,
        "data": medvlp.Data(card, **parts, record={"groups_in_two_splits": {}, "skipped": []}),
        "zero": medvlp.ZeroShot(clip, card),
        "vip": medvlp.ViP(clip, card),
        "cilmp": medvlp.CILMP(
            clip, card, {name: clip.model.text.ln_final.weight.new_ones(9, 8) for name in card.classnames}
        ),
        "phantoms": phantoms,
        "method": medvlp.ZeroShot(clip, data.card, symptoms=lists),
        "claims": {VEIL: ("veil", True), DOTS: ("dots", True)},
    }


@pytest.fixture(scope="module")
def shown(clip, hostile) -> dict[str, object]:
    """Everything that shows itself in a notebook, by the name of what made it."""
    show, images, zero, vip = medvlp.show, hostile["images"], hostile["zero"], hostile["vip"]
    method, phantoms, claims = hostile["method"], hostile["phantoms"], hostile["claims"]
    few = {"n_images": 5, "claims": claims}
    lists = zero.symptoms
    points = show.Embeddings.concat([show.symptom_points(zero), show.image_points(zero, images)])
    maps = points.points.assign(x=range(len(points)), y=0.0, metric="cosine", seed=1)
    maps = maps.assign(n_neighbors=2, min_dist=0.1)
    noted = (pd.DataFrame({NEVUS: [0, 1] * 20}),) * 2
    described = dataclasses.replace(
        images,
        card=images.card.model_copy(
            update={"attributes": [Attribute(name=NEVUS, values={"0": [NEVUS], "1": [DOTS]})]}
        ),
        annotations=tuple(table.astype(str) for table in noted),
    )
    moved = show.counterfactual(method, phantoms, **few)
    study = medvlp.shipped_study("few_shot")
    report = medvlp.evaluate(zero, images, n_bootstrap=5)
    wrong = show.failures(zero, images, images)
    made = medvlp.SymptomSet.from_phrases(hostile["card"], lists)
    return {
        "symptom_scores_table": show.symptom_scores_table(vip, images.image(0)),
        "symptom_scores_table of CILMP": show.symptom_scores_table(hostile["cilmp"], images.image(0)),
        "faithfulness": show.faithfulness(method, phantoms, **few, n_bootstrap=5),
        "faithfulness_controls": show.faithfulness_controls(method, phantoms, claims, 2, 5, 5),
        "counterfactual": moved,
        "counterfactual_summary": show.counterfactual_summary(moved, n_bootstrap=5),
        "what_is_seen": show.what_is_seen(clip, phantoms, phantoms, n_images=5),
        "compare": medvlp.compare(report, report, n_bootstrap=5),
        "localisation": show.localisation(clip, phantoms, ["rollout"], n_images=2),
        "modality_gap": show.modality_gap(points),
        "what_a_map_hides": show.what_a_map_hides(points, maps),
        "attribute_agreement": medvlp.attribute_agreement(dataclasses.replace(images, annotations=noted)),
        "attribute_accuracy": medvlp.attribute_accuracy(clip, described, n_bootstrap=5),
        "map_points": points.points,  # whose columns a map's table has
        "review_table": medvlp.review_table(lists, hostile["card"]),
        "trainable_parameters": medvlp.trainable_parameters(vip),
        "overview": medvlp.overview(),
        "in_words": medvlp.in_words(wrong.table),
        "failures": wrong,
        "failures' table": wrong.table,
        "failures' pairs": wrong.pairs(),
        "failures' symptoms": wrong.symptoms,
        "failures' neighbours": wrong.neighbours,
        "right_and_wrong": show.right_and_wrong(zero, vip, images),
        "stability": show.stability(zero, images, changes={f"dark {NEVUS}": lambda pixels: -pixels}),
        "label_noise_suspects": show.label_noise_suspects(images, clip, folds=2),
        "report": report,
        "report by image": report.per_image,
        "report by class": report.per_class(),
        "confusion": report.confusion(),
        "data": hostile["data"],
        "data's summary": hostile["data"].summary(),
        "data's images": hostile["data"].split_table(),
        "image set": images,
        "prediction": medvlp.predict(zero, images.image(0)),
        "predicted scores": medvlp.predict(zero, images.image(0)).symptom_scores,
        "merge weights": vip.merge_weights(),
        "symptom set": made,
        "candidates": made.candidates(),
        "study": study,
        "runs": study.runs.assign(data=NEVUS),
        "summary": study.runs.assign(data=NEVUS).head(3),
        "page of a map": show.scatter_page(maps, images, title=NEVUS),
        "explorer": show.SymptomExplorer(zero, images).table(),
        "explorer's probabilities": show.SymptomExplorer(zero, images).probabilities(),
        "interventions": show.InterventionExplorer(hostile["cilmp"], images).table(),
        "curve of interventions": show.InterventionExplorer(hostile["cilmp"], images).curve(),
        "lab": show.PhantomLab({"zero": method}).scores(),
    }


def test_every_public_name_that_gives_a_table_is_asked(shown):
    for package in (medvlp, medvlp.show):
        for name in package.__all__:
            public = getattr(package, name)
            if inspect.isfunction(public) and "DataFrame" in str(get_type_hints(public).get("return")):
                assert name in shown.keys() | SHOWS_NO_TEXT_OF_CARDS, name


def test_nothing_that_is_shown_is_typeset_or_acts_unseen(shown):
    assert typeset("<p>a $b$</p>") and not typeset(f"<p>{literal('a $b$')}</p>")
    wrong = []
    for name, thing in shown.items():
        page = getattr(thing, "_repr_html_", lambda: "")()
        if RAW.search(repr(thing) + page):
            wrong.append(f"{name} shows a raw character")
        if isinstance(thing, pd.DataFrame):
            page += thing.style.to_html() + thing.head(2).reset_index()._repr_html_()
        if typeset(page) or (isinstance(thing, pd.DataFrame) and not isinstance(thing, Table)):
            wrong.append(f"{name} is typeset")
    assert wrong == []


def test_pages_that_are_written_have_no_raw_character(hostile, tmp_path):
    wrong = medvlp.show.failures(hostile["zero"], hostile["images"], hostile["images"])
    page = wrong.to_html(tmp_path / "page.html", show_ids=True).read_text(encoding="utf-8")
    assert NEVUS.split()[1] not in page and not RAW.search(page)
    points = medvlp.show.symptom_points(hostile["zero"]).points
    maps = points.assign(x=range(len(points)), y=0.0, metric="cosine", seed=1, n_neighbors=2, min_dist=0.1)
    page = medvlp.show.scatter_page(maps, title=NEVUS).html
    assert not RAW.search(page)
    texts = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert not RAW.search(json.dumps(texts, ensure_ascii=False))


def test_widgets_show_no_raw_character(hostile):
    explorers = [
        medvlp.show.SymptomExplorer(hostile["zero"], hostile["images"]),
        medvlp.show.InterventionExplorer(hostile["cilmp"], hostile["images"]),
        medvlp.show.PhantomLab({"zero": hostile["method"]}),
    ]
    boxes = [explorer.box for explorer in explorers]
    boxes.append(medvlp.SymptomReview(hostile["zero"].symptoms, hostile["card"]).widget)
    page = "\n".join(map(shown_html, boxes))
    assert "nevus" in page and not typeset(page) and not RAW.search(page)
