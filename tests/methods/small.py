"""A small card and small image sets, for tests of methods and of their evaluation."""

import random

import numpy as np
import torch
from torch import nn

from medvlp.data.cards import DataCard
from medvlp.data.image_sets import ImageSet, Pixels

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])  # of the images of each class

SYMPTOMS = {
    "melanoma": ["asymmetric shape", "ragged border", "blue and gray colors"],
    "nevus": ["round shape", "even brown color"],
    "keratosis": ["waxy surface", "stuck-on look", "white dots", "sharp edge"],
}


def make_card(n_cls: int = 3, name: str = "lesions") -> DataCard:
    """The first `n_cls` classes of SYMPTOMS; their useless knowledge is the same for all."""
    classes = [
        {"name": c, "knowledge": {"symptoms": phrases, "useless": ["a photo of skin"]}}
        for c, phrases in list(SYMPTOMS.items())[:n_cls]
    ]
    card = {
        "name": name,
        "title": "Small lesions",
        "modality": "a dermoscopy image",
        "classes": classes,
        "templates": ["a dermoscopy image of {}.", "skin with {}.", "a close-up of {}."],
        "source": {"kind": "folder"},
    }
    return DataCard.model_validate(card)


def make_set(card: DataCard, labels: list[int], split: str = "train", seed: int = 0) -> ImageSet:
    """One noisy image of its class's colour for each label, 32 x 32; labels beyond the card are grey."""
    labels = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    colours = np.array([COLOURS[y] if 0 <= y < len(COLOURS) else [128] * 3 for y in labels]).reshape(
        -1, 1, 1, 3
    )
    pixels = np.clip(colours + rng.normal(0, 60, size=(len(labels), 32, 32, 3)), 0, 255).astype(np.uint8)
    return set_of(card, labels, pixels, split)


def set_of(card: DataCard, labels: np.ndarray, pixels: np.ndarray, split: str = "test") -> ImageSet:
    """These images, (N, H, W, 3) uint8, each a group of its own."""
    ids = [f"{split}/{i:03d}.png" for i in range(len(labels))]
    store = Pixels(pixels, np.arange(len(labels)))
    return ImageSet(card, split, ids, torch.as_tensor(labels, dtype=torch.int64), ids, store)


def trained(method: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a method learns, by name."""
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def shake(method: nn.Module) -> nn.Module:
    """Move every learned tensor away from its start."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in trained(method).values():
            p.add_(torch.randn(p.shape, generator=random) * 0.3)
    return method


def flips(raw: bytes, n: int, seed: int = 0) -> list[bytes]:
    """Copies of a file's bytes with one bit turned, at places drawn from `seed`."""
    copies = []
    for place in random.Random(seed).sample(range(8 * len(raw)), n):
        copy = bytearray(raw)
        copy[place // 8] ^= 1 << place % 8
        copies.append(bytes(copy))
    return copies
