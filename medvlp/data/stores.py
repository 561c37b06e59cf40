"""What holds the images of a split: files, an array, or phantoms that are rendered when looked at."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from medvlp.data.files import sha256
from medvlp.data.images import read_image
from medvlp.data.phantoms.drawing import DRAWING
from medvlp.data.phantoms.worlds import Latents, World

CHUNK = 64  # phantoms rendered at a time


class Store(Protocol):
    """What holds the images of a split."""

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""

    def take(self, rows: np.ndarray) -> "Store":
        """The store of these rows only."""

    def content(self) -> str:
        """A hash that changes when an image changes."""


@dataclass
class Files:
    """Image files, read one by one."""

    paths: list[Path]

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""
        return read_image(self.paths[i])

    def take(self, rows: np.ndarray) -> "Files":
        """These files only."""
        return Files([self.paths[i] for i in rows])

    def content(self) -> str:
        """Hash of the files' sizes and times; none is read."""
        stats = [path.stat() for path in self.paths]
        return sha256(*(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats))


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

    def content(self) -> str:
        """Hash of the pixels."""
        digest = hashlib.sha256(str(self.array.shape[1:]).encode())
        for row in self.rows:
            digest.update(np.ascontiguousarray(self.array[row]).data)
        return digest.hexdigest()


class Rendered:
    """Phantoms, rendered a chunk at a time when first looked at and kept as uint8.

    Data loader workers do not share what they render, so read phantoms with num_workers=0.
    """

    def __init__(self, world: World, latents: Latents, size: int) -> None:
        self.world, self.latents, self.size = world, latents, size
        self._chunks: dict[int, torch.Tensor] = {}

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""
        number, place = divmod(i, CHUNK)
        if number not in self._chunks:
            part = self.latents[number * CHUNK : (number + 1) * CHUNK]
            self._chunks[number] = self.world.render(part, size=self.size)  # (CHUNK, 3, size, size)
        return Image.fromarray(self._chunks[number][place].permute(1, 2, 0).contiguous().numpy())

    def take(self, rows: np.ndarray) -> "Rendered":
        """These phantoms only, not rendered yet."""
        return Rendered(self.world, self.latents[torch.from_numpy(rows)], self.size)

    def content(self) -> str:
        """Hash of what the images follow from: the way of drawing, the world, the size and the latents.

        Not of pixels: between processors a few of them differ by 1, and it is the same data set.
        """
        latents = (self.latents.labels, self.latents.attributes, self.latents.seeds)
        return sha256(
            str(DRAWING), self.world.name, str(self.size), *(tensor.numpy().tobytes() for tensor in latents)
        )


@dataclass
class Found:
    """The images of one split, as a source gives them: N ids, labels and groups, and their store."""

    ids: list[str]
    labels: np.ndarray  # (N,) int64
    groups: list[str]
    store: Store

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Found":
        """These rows only, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        ids, groups = [self.ids[i] for i in rows], [self.groups[i] for i in rows]
        return Found(ids, self.labels[rows], groups, self.store.take(rows))
