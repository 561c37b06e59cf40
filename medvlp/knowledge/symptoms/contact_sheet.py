"""A contact sheet: some training images of one class on one small JPEG, for an LLM that reads images.

Only pixels go into it: the images are pasted onto a new picture, so nothing of their files (EXIF, names,
comments) is in the JPEG. What is burnt into the pixels of an image, such as a name, stays visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief
from medvlp.data.html import jpeg

ROWS = 4  # a sheet is ROWS x ROWS images
TILE = 112  # pixels a side of one image
QUALITY = 90  # of the JPEG


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
