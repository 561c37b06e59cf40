"""A gallery as one HTML page that needs nothing else: no script, no request, every text escaped."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from medvlp.data.errors import visible
from medvlp.data.files import atomic_write
from medvlp.data.html import data_uri, jpeg, policy_hash
from medvlp.data.image_sets import ImageSet

if TYPE_CHECKING:  # it imports this module
    from medvlp.show.gallery.failures import Failures

PICTURE, SMALL = 160, 80  # most pixels a side: of an image, and of a training image beside it
QUALITY = 85  # of the JPEG
N_SYMPTOMS = 3  # listed for each class


def write_page(path: str | Path, sections: Sequence["Failures"], show_ids: bool | None = None) -> Path:
    """Write galleries under one another as one page, whole or not at all; return its path.

    Pictures are small JPEGs inside the page, without anything that the file said of itself. The page has no
    script, and a policy that forbids scripts and requests. Class names, symptoms and notes are text there,
    whatever they are made of. Light or dark is as the reader's system has it.

    Args:
        path: the page's file, such as "failures.html".
        sections: galleries, such as failures, stability and label-noise suspects.
        show_ids: whether an image's id, which may name a file or a patient, is shown. None: where the card
            of its data set allows redistribution. Images are numbered by their place in the set.

    Raises:
        ValueError: no section.
        OSError: `path` cannot be written.
    """
    if not sections:
        raise ValueError("a page needs at least one gallery.")
    style = _asset("page.css")
    pictures = _pictures(sections)
    sets = [images for s in sections for images in (s.images, s.train) if images is not None]
    cards = list({images.card.name: images.card for images in sets}.values())
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        .from_string(_asset("page.html"))
        .render(
            policy=f"default-src 'none'; img-src data:; style-src '{policy_hash(style)}'; base-uri 'none'; "
            "form-action 'none'",
            style=Markup(style),
            sections=[_section(section, pictures, show_ids) for section in sections],
            data_cards=cards,
            phantoms=any("misled_by" in section.table for section in sections),
            symptoms=any(len(section.symptoms) for section in sections),
            neighbours=any(len(section.neighbours) for section in sections),
            warnings=[
                f"{card.title}: its card does not allow passing its images on, and this page has some."
                for card in cards
                if not card.redistribution
            ],
        )
    )
    path = Path(path)
    with atomic_write(path) as part:
        part.write_text(visible(page), encoding="utf-8")
    return path


def picture_uri(image: Image.Image, side: int) -> str:
    """A picture of at most `side` pixels a side as a data: URI, a JPEG of the pixels alone."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    pixels = Image.fromarray(np.asarray(small))  # without comment, EXIF, profile
    return data_uri("image/jpeg", jpeg(pixels, QUALITY))


def _asset(name: str) -> str:
    return (resources.files("medvlp.show.gallery") / name).read_text(encoding="utf-8")


def _pictures(sections: Iterable["Failures"]) -> dict[tuple[int, int, int], str]:
    """Every picture of the page by (id of its set, image, side); each is made once."""
    wanted: dict[tuple[int, int, int], ImageSet] = {}
    for section in sections:
        for images, places, side in (
            (section.images, section.table["image"], PICTURE),
            (section.train, section.neighbours["neighbour"], SMALL),
        ):
            wanted |= {(id(images), int(i), side): images for i in places}
    if not wanted:
        return {}

    def make(item: tuple[tuple[int, int, int], ImageSet]) -> str:
        (_, i, side), images = item
        return picture_uri(images.picture(i), side)

    uris = thread_map(make, wanted.items(), desc="pictures", unit="image", leave=False, delay=2)
    return dict(zip(wanted, uris, strict=True))


def _section(
    section: "Failures", pictures: dict[tuple[int, int, int], str], show_ids: bool | None
) -> dict[str, Any]:
    """What the template shows of one gallery."""

    def shown(images: ImageSet, i: int, side: int) -> dict[str, str | None]:
        named = images.card.redistribution if show_ids is None else show_ids
        return {"picture": pictures[id(images), i, side], "id": images.ids[i] if named else None}

    symptoms = section.symptoms.assign(above=section.symptoms["score"] - section.symptoms["usual"])
    argued = _by(symptoms[symptoms["argued"] > 0], ["image", "classname"])  # the strongest first
    near, groups = _by(section.neighbours, ["image"]), []
    for pair in section.pairs().to_dict("records"):
        cards = section.pair(pair["true"], pair["predicted"]).table.to_dict("records")
        # of each class that is listed, which may be one: what it is here
        kinds = {pair["predicted"]: "predicted", pair["true"]: "true"} if len(symptoms) else {}
        for card in cards:
            i = card["image"]
            card |= shown(section.images, i, PICTURE)
            card["described"] = section.images.described(i)
            card["symptoms"] = [(kind, name, argued[i, name][:N_SYMPTOMS]) for name, kind in kinds.items()]
            card["neighbours"] = [one | shown(section.train, one["neighbour"], SMALL) for one in near[i,]]
        groups.append(pair | {"cards": cards})
    return {"title": section.title, "words": section.words, "groups": groups}


def _by(table: pd.DataFrame, columns: list[str]) -> dict[tuple, list[dict]]:
    """The rows of a table by what they have in some columns, in their order."""
    rows: dict[tuple, list[dict]] = defaultdict(list)
    for row in table.to_dict("records"):
        rows[tuple(row[column] for column in columns)].append(row)
    return rows
