"""What an LLM is asked for visual symptoms, and shown: the questions, their version, the shape of an answer.

After ViP (arXiv 2409.00341): a text question says that CLIP is to detect the class and asks for plain visual
features without its name; an image question shows one sheet of training images and asks for colour, shape and
texture. The wording is our own, as the authors' is not published.

Of training images only pixels go into a contact sheet: they are pasted onto a new picture, so nothing of
their files (EXIF, names, comments) is in the JPEG. What is burnt into the pixels of an image, such as a name,
stays visible.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from hashlib import sha256
from importlib import resources
from string import Template

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageOps

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief, check_choice
from medvlp.data.html import jpeg

PLACEHOLDERS = {  # what each question may ask for, and what it must
    "text": ({"count", "classname", "modality", "others"}, {"classname", "modality"}),
    "images": ({"count", "classname", "modality", "others", "shown"}, {"modality"}),
    "agree": ({"count", "classname", "modality", "from_text", "from_images"}, {"from_text", "from_images"}),
    "again": ({"count", "classname", "modality", "kept", "rejected"}, set()),
}
JSON_KEY = '"symptoms"'  # a question that has it asks for JSON, and servers are sent the schema of that
SCHEMA = {
    "type": "object",
    "properties": {"symptoms": {"type": "array", "items": {"type": "string"}}},
    "required": ["symptoms"],
    "additionalProperties": False,
}
ROWS = 4  # a contact sheet is ROWS x ROWS images
TILE = 112  # pixels a side of one image
QUALITY = 90  # of its JPEG


@dataclass(frozen=True)
class SymptomPrompts:
    """The four questions, with `$name` for what is filled in and `$$` for a dollar sign.

    Each asks for JSON, {"symptoms": ["...", "..."]}, or for one flat list of bullets; nothing else is read.

    Args:
        text: stage 1. `$count` phrases for `$classname` in `$modality`; `$others` are the other classes.
        images: stage 2, sent with the contact sheet of `$shown` images.
        agree: stage 3, where the LLM compares: the phrases `$from_text` and `$from_images`, one a line.
        again: sent after an answer with too few usable phrases: `$rejected` ones with their reasons, one a
            line, and those already `$kept`.
        version: your name for this wording; it is stored with what it produced.

    Raises:
        ValueError: an unknown placeholder, a missing one, or a stray dollar sign.
    """

    text: str
    images: str
    agree: str
    again: str
    version: str

    def __post_init__(self) -> None:
        for stage, (known, needed) in PLACEHOLDERS.items():
            prompt = Template(getattr(self, stage))
            if not prompt.is_valid():
                raise ValueError(f"the prompt {stage!r} has a stray dollar sign; write $$ for one.")
            named = prompt.get_identifiers()
            for name in named:
                check_choice("placeholder", name, sorted(known), f"the prompt {stage!r}")
            for name in sorted(needed):
                if name not in named:
                    raise ValueError(f"the prompt {stage!r} needs the placeholder ${name}.")
        if not self.version.strip():
            raise ValueError("prompts need a version, such as 'mine 1'.")

    def fill(self, stage: str, **values: str | int) -> str:
        """One question with its values put in, once: a value with `$` or braces stays as it is."""
        return Template(getattr(self, stage)).substitute(values)

    @property
    def facts(self) -> dict[str, str]:
        """Version and full texts, for provenance."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{field.name}:\n{getattr(self, field.name)}" for field in fields(self)]
        return "\n\n".join(parts)


@cache
def __getattr__(name: str) -> SymptomPrompts:
    """DEFAULT and SMALL, the wordings that ship with the package, read when they are asked for."""
    if name not in ("DEFAULT", "SMALL"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    written = yaml.safe_load((resources.files("medvlp") / "assets" / "prompts.yaml").read_text("utf-8"))
    return SymptomPrompts(**written["DEFAULT"] | written[name])


@dataclass(frozen=True)
class ContactSheet:
    """One sheet as it is sent: the JPEG, and how many images of which class are on it."""

    jpeg: bytes
    classname: str
    shown: int
    ids: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str | int]:
        """What stands for the image in a record: hash, bytes and pixels a side, never the image."""
        pixels = f"{ROWS * TILE} x {ROWS * TILE}"
        return {"sha256": sha256(self.jpeg).hexdigest(), "bytes": len(self.jpeg), "pixels": pixels}

    def _repr_jpeg_(self) -> bytes:
        """Show the sheet in a notebook."""
        return self.jpeg

    def __repr__(self) -> str:
        return f"ContactSheet({brief(self.classname)}: {self.shown} images, {len(self.jpeg)} bytes)"


def contact_sheet(images: ImageSet, classname: str, seed: int = 1) -> ContactSheet:
    """16 images of a class, chosen by `seed`, 4 x 4 on a JPEG of 448 x 448 pixels without metadata.

    Each image is shrunk to fit its place and centred on black; places stay black where a class has fewer.
    Images of different groups (patients) are preferred.

    Raises:
        ValueError: an unknown class, a class without images, or a split other than train: what an LLM has
            seen of validation or test images would leak into the results.
    """
    check_shown(images, [classname])
    label = images.card.label_of(classname)
    rows = np.flatnonzero(images.labels.numpy() == label)
    drawn = np.random.default_rng([seed, label]).permutation(rows)
    groups = pd.Series(images.groups).iloc[drawn]
    turns = groups.groupby(groups).cumcount()  # one of every group first, then each group's second
    chosen = drawn[turns.argsort(kind="stable")][: ROWS * ROWS].tolist()
    sheet = Image.new("RGB", (ROWS * TILE, ROWS * TILE))
    for place, row in enumerate(chosen):
        tile = ImageOps.pad(images.image(row).convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % ROWS * TILE, place // ROWS * TILE))
    ids = tuple(images.ids[row] for row in chosen)
    return ContactSheet(jpeg(sheet, QUALITY), classname, len(chosen), ids)


def check_shown(images: ImageSet, classnames: Sequence[str]) -> None:
    """ValueError unless these are training images, some of every class."""
    if images.split != "train":
        raise ValueError(
            f"the images are of split {images.split!r}: an LLM may only see training images. Pass data.train."
        )
    for name in classnames:
        if not (images.labels == images.card.label_of(name)).any():
            raise ValueError(f"class {brief(name)}: there is no training image of it to show.")
