"""ImageSet: the images of one split, with their labels; PhantomSet also knows what its images show.

The images themselves lie in a store: `Files`, an array (`Pixels`), phantoms that are drawn when looked at
(`Rendered`), or, where the images are not here, what the package ships of them (`Shipped`). Every store has
`image(i)`, `take(rows)` (the store of these rows only), `hashes`, one of each image's content, `content()`, a
hash that changes when an image changes, and `glances`, what is cheap to see of each image: those of the same
images are equal, and None is like nothing.
"""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from medvlp.data.cards import DataCard
from medvlp.data.errors import check_choice, check_same_classes, listed, visible
from medvlp.data.files import file_hashes, in_threads, open_regular, sha256, short
from medvlp.data.images import ImageError, read_image
from medvlp.data.phantoms.worlds import Latents, Rendered, World
from medvlp.data.tensor_files import Shipped

PLACEHOLDER = 224  # pixels a side


@dataclass
class Files:
    """Image files, read one by one; `names` are paths within `folder`."""

    folder: Path
    names: list[str]

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""
        return read_image(Path(self.folder, self.names[i]))

    def take(self, rows: np.ndarray) -> "Files":
        """These files only."""
        return Files(self.folder, [self.names[i] for i in rows])

    @property
    def hashes(self) -> list[str]:
        """Of what is in each file; of one that is unchanged since it was last read, as it was then."""
        try:
            return file_hashes(self.folder, self.names)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no image file {error.filename}.") from error
        except OSError as error:
            raise ImageError(f"cannot read image {error.filename}: {error.strerror}.") from error

    def content(self) -> str:
        """Hash of what is in the files."""
        return sha256(*self.hashes)

    @property
    def glances(self) -> list[tuple[int, bytes] | None]:
        """The size of each file with a few bytes from its middle."""

        def glance(name: str) -> tuple[int, bytes] | None:
            try:
                with open_regular(os.path.join(self.folder, name)) as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(size // 2)
                    return size, file.read(64)
            except OSError:
                return None

        return in_threads(glance, self.names, "comparing images")


@dataclass
class Pixels:
    """An array (N, H, W) or (N, H, W, 3) of uint8, and the rows of it that are used."""

    array: np.ndarray
    rows: np.ndarray

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""
        return Image.fromarray(self.array[self.rows[i]]).convert("RGB")

    def take(self, rows: np.ndarray) -> "Pixels":
        """These rows only, of the same array."""
        return Pixels(self.array, self.rows[rows])

    @property
    def hashes(self) -> list[str]:
        """Of each image's shape and pixels."""
        shape = str(self.array.shape[1:])
        return [sha256(shape, self.array[row].tobytes()) for row in self.rows]

    def content(self) -> str:
        """Hash of the pixels."""
        digest = hashlib.sha256(str(self.array.shape[1:]).encode())
        for row in self.rows:
            digest.update(np.ascontiguousarray(self.array[row]).data)
        return digest.hexdigest()

    @property
    def glances(self) -> list[bytes]:
        """The middle row of pixels of each image."""
        middle = self.array.shape[1] // 2
        return [self.array[row, middle].tobytes() for row in self.rows]


@dataclass(repr=False, eq=False)
class ImageSet(Dataset):
    """The images of one split. Item i is (image, label): PIL RGB or `transform(image)`, and an int.

    Attributes:
        card: DataCard; label order is `card.classnames`.
        split: "train", "val" or "test".
        ids: N stable names, such as "train/NORMAL/IM-1.jpeg".
        labels: LongTensor (N,).
        groups: N names; images of one group (one patient) stay in one split.
        store: What holds the images.
        transform: what is done to an image, or None.
        annotations: What experts noted, a table each, `attributes` being the first.

    Example:
        >>> import medvlp
        >>> images = medvlp.load_dataset("phantom-derm").train
        >>> images
        ImageSet(phantom-derm, train: 2000 images; melanoma 1007, nevus 993)
        >>> image, label = images[0]
        >>> image.size, images.ids[0]
        ((64, 64), 'phantom-derm/seed1/train/000000')
        >>> images.subset(images.labels == 0).counts
        {'melanoma': 1007, 'nevus': 0}
    """

    card: DataCard
    split: str
    ids: list[str]
    labels: Tensor
    groups: list[str]
    store: Files | Pixels | Rendered | Shipped
    transform: Callable | None = None
    annotations: tuple[pd.DataFrame, ...] = ()

    @property
    def attributes(self) -> pd.DataFrame:
        """What an expert noted of each image: a row for each, by its id, and a column for each attribute.

        Columns are categorical, missing where nobody looked; there are none where the card has no attributes.
        """
        return self.annotations[0] if self.annotations else pd.DataFrame(index=self.ids)

    @property
    def pictures_missing(self) -> bool:
        """Whether the images are not here, only features that the package ships."""
        return isinstance(self.store, Shipped)

    def described(self, i: int) -> str:
        """What an expert noted of image i, as "cell size: big, granularity: yes"; "" where nothing."""
        noted = self.annotations[0].iloc[i].dropna() if self.annotations else {}
        return ", ".join(f"{name}: {value}" for name, value in noted.items())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.image(i)
        return (self.transform(image) if self.transform else image), int(self.labels[i])

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.counts.items())
        missing = ", whose pictures are not here" if self.pictures_missing else ""
        return visible(f"ImageSet({self.card.name}, {self.split}: {len(self)} images{missing}; {counts})")

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, in label order."""
        counts = torch.bincount(self.labels, minlength=len(self.card.classes)).tolist()
        return dict(zip(self.card.classnames, counts, strict=True))

    def image(self, i: int) -> Image.Image:
        """Image i as PIL RGB, without the transform."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return self.store.image(int(i) % len(self))

    def picture(self, i: int) -> Image.Image:
        """Image i to show to people: where it is not here, a grey square that says so."""
        if not self.pictures_missing:
            return self.image(i)
        square = Image.new("RGB", (PLACEHOLDER, PLACEHOLDER), "lightgrey")
        words = {"text": "image\nnot here", "anchor": "mm", "align": "center", "font_size": PLACEHOLDER / 7}
        ImageDraw.Draw(square).text((PLACEHOLDER / 2, PLACEHOLDER / 2), fill="black", **words)
        return square

    def with_transform(self, transform: Callable | None) -> "ImageSet":
        """The same images with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "ImageSet":
        """These images only, in this order; a boolean mask (N,) will do too."""
        indices = np.asarray(indices)
        rows = np.arange(len(self))[indices if indices.size else np.empty(0, dtype=int)]  # [] is of floats
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            labels=self.labels[torch.from_numpy(rows)],
            groups=[self.groups[i] for i in rows],
            store=self.store.take(rows),
            annotations=tuple(table.iloc[rows] for table in self.annotations),
        )

    def of_classes(self, card: DataCard) -> "ImageSet":
        """The images of a card's classes only, labelled as that card has it: see `DataCard.with_classes`.

        ValueError for a class that these images do not have.
        """
        old = self.card.classnames
        for name in card.classnames:
            check_choice("class", name, old, f"card {self.card.name!r}")
        new = [card.classnames.index(name) if name in card.classnames else -1 for name in old]  # -1: left out
        labels = torch.tensor(new)[self.labels]  # (N,)
        return replace(self.subset(labels >= 0), card=card, labels=labels[labels >= 0])

    def check(self, card: DataCard, who: str) -> None:
        """Raise ValueError unless `who`, built from `card`, can work with these images.

        There must be images, of that card's classes in its order, with labels among them.
        """
        classnames, where = card.classnames, f"the {self.split} set of card {self.card.name!r}"
        if not len(self):
            raise ValueError(f"{where} is empty.")
        check_same_classes(who, classnames, where, self.card.classnames)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(classnames)))
        if len(outside):
            i = outside[0]
            raise ValueError(
                f"image '{short(self.ids[i])}' of {where} has label {int(self.labels[i])}, outside the "
                f"card's classes, 0 to {len(classnames) - 1}: {listed(classnames)}."
            )

    @cached_property
    def hashes(self) -> list[str]:
        """A hash of each image's content, whatever it is called: its features are kept by it."""
        return self.store.hashes

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, labels, content and, where an image is not its own group, groups.

        Files are read for it, each once. A copy of the same files elsewhere has the same fingerprint.
        """
        groups = [] if self.groups == self.ids else self.groups
        return sha256(*self.ids, self.labels.numpy().tobytes(), self.store.content(), *groups)


def same_images(sets: Sequence[ImageSet]) -> dict[str, list[list[str]]]:
    """Ids of images that are the same byte for byte and should not be, by what is wrong.

    Few are read in full: those that another is like at a glance. The sets' stores are of one kind.
    """
    glances = [images.store.glances for images in sets]
    seen = Counter(glance for of_set in glances for glance in of_set if glance is not None)
    with_content: dict[str, list[tuple[ImageSet, int]]] = {}
    for images, of_set in zip(sets, glances, strict=True):
        rows = [i for i, glance in enumerate(of_set) if seen[glance] > 1]
        for i, content in zip(rows, images.subset(rows).hashes, strict=True):
            with_content.setdefault(content, []).append((images, i))
    same: dict[str, list[list[str]]] = {"in two splits": [], "under two labels": []}
    for group in with_content.values():
        ids = [images.ids[i] for images, i in group]
        if len({images.split for images, _ in group}) > 1:
            same["in two splits"].append(ids)
        if len({int(images.labels[i]) for images, i in group}) > 1:
            same["under two labels"].append(ids)
    return {why: sorted(groups) for why, groups in same.items()}


class PhantomSet(ImageSet):
    """Phantoms: images that also know what they show.

    They are rendered when first looked at and kept; workers of a DataLoader would each render their own,
    so use `num_workers=0`.
    """

    @property
    def world(self) -> World:
        """The world that draws them."""
        return self.store.world

    @property
    def latents(self) -> Latents:
        """What the images are made of; `world.render(latents.with_attribute(k, True))` draws them changed.

        `latents.labels` are the world's classes, also where `of_classes` has labelled the images anew.
        """
        return self.store.latents

    @property
    def attributes(self) -> pd.DataFrame:
        """Which attributes each image shows: "present" or "absent"; `latents.attributes` has them as bool."""
        shown = np.where(self.latents.attributes, "present", "absent")  # (N, K)
        names = [attribute.name for attribute in self.world.attributes]
        kind = pd.CategoricalDtype(["absent", "present"])
        return pd.DataFrame(shown, index=self.ids, columns=names).astype(kind)
