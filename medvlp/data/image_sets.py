"""ImageSet: the images of one split, with their labels; PhantomSet also knows what its images show."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from medvlp.data.cards import DataCard
from medvlp.data.errors import unknown_name
from medvlp.data.files import sha256
from medvlp.data.phantoms.worlds import World
from medvlp.data.stores import Found


class ImageSet(Dataset):
    """The images of one split. Item i is (image, label): PIL RGB or `transform(image)`, and an int.

    Attributes:
        card: DataCard; label order is `card.classnames`.
        split: "train", "val" or "test".
        ids: N stable names, such as "train/NORMAL/IM-1.jpeg".
        groups: N names; images of one group (one patient) stay in one split.
        labels: LongTensor (N,).
        transform: what is done to an image, or None.
    """

    def __init__(self, card: DataCard, split: str, found: Found, transform: Callable | None = None) -> None:
        self.card, self.split, self.transform = card, split, transform
        self.ids, self.groups = found.ids, found.groups
        self.labels = torch.from_numpy(found.labels)  # (N,)
        self._found = found

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.image(i)
        return (self.transform(image) if self.transform else image), int(self.labels[i])

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.counts.items())
        return f"ImageSet({self.card.name}, {self.split}: {len(self)} images; {counts})"

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, in label order."""
        counts = torch.bincount(self.labels, minlength=len(self.card.classes)).tolist()
        return dict(zip(self.card.classnames, counts, strict=True))

    def image(self, i: int) -> Image.Image:
        """Image i as PIL RGB, without the transform."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return self._found.store.image(int(i) % len(self))

    def with_transform(self, transform: Callable | None) -> "ImageSet":
        """The same images with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def subset(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> "ImageSet":
        """These images only, in this order; a boolean mask (N,) will do too."""
        indices = np.asarray(indices)
        rows = np.arange(len(self))[indices if indices.size else np.empty(0, dtype=int)]  # [] is of floats
        return type(self)(self.card, self.split, self._found.take(rows), self.transform)

    def of_classes(self, card: DataCard) -> "ImageSet":
        """The images of a card's classes only, labelled as that card has it: see `DataCard.with_classes`.

        ValueError for a class that these images do not have.
        """
        new = np.full(len(self.card.classes), -1)  # (n_cls,), -1 for classes that are left out
        for label, name in enumerate(card.classnames):
            if name not in self.card.classnames:
                raise ValueError(
                    unknown_name("class", name, self.card.classnames, f"card {self.card.name!r}")
                )
            new[self.card.classnames.index(name)] = label
        labels = new[self.labels.numpy()]  # (N,)
        found = self._found.take(np.flatnonzero(labels >= 0))
        found = replace(found, labels=new[found.labels])
        return type(self)(card, self.split, found, self.transform)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, labels and content (for files their sizes and times, so none is read)."""
        return sha256(*self.ids, self.labels.numpy().tobytes(), self._found.store.content())


class PhantomSet(ImageSet):
    """Phantoms: images that also know what they show.

    They are rendered when first looked at and kept; workers of a DataLoader would each render their own,
    so use `num_workers=0`.
    """

    @property
    def world(self) -> World:
        """The world that draws them."""
        return self._found.store.world

    @property
    def latents(self) -> Any:
        """What the images are made of; `world.render(latents.with_attribute(k, True))` draws them changed.

        `latents.labels` are the world's classes, also where `of_classes` has labelled the images anew.
        """
        return self._found.store.latents

    @property
    def attributes(self) -> torch.Tensor:
        """Which attributes each image shows, (N, K) bool."""
        return self.latents.attributes

    @property
    def attribute_names(self) -> list[str]:
        """Names of the K attributes."""
        return [attribute.name for attribute in self.world.attributes]
