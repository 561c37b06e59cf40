"""Small methods to train, on a small CLIP and coloured squares."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.methods.base import Method, own_tensors
from medvlp.study.training.callbacks import Callback
from tests.backbone import small_clips
from tests.methods.small import make_card, make_set

CARD = make_card()


class Prototypes(Method):
    """Cosines with one learned vector a class, on frozen image features, with dropout."""

    def __init__(self, clip: Clip, card: DataCard, dropout: float = 0.0, seed: int = 1) -> None:
        super().__init__(clip, card, locals())
        start = torch.randn(len(card.classes), clip.embed_dim, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(start)  # (n_cls, D)
        self.dropout = nn.Dropout(dropout)

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        return 10 * self.dropout(image_features) @ F.normalize(self.weight, dim=-1).T


class Tinted(Method):
    """Prototypes on images to which a learned colour is added: no feature can be cached."""

    def __init__(self, clip: Clip, card: DataCard, seed: int = 1) -> None:
        super().__init__(clip, card, locals())
        self.head = Prototypes(clip, card, seed=seed)
        self.tint = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head.logits_from_features(self.clip.encode_images(images + self.tint))


def small_clip(folder: Path, seed: int = 0) -> Clip:
    """Random weights."""
    return load_clip(small_clips.open_clip_kind(folder, seed), device="cpu")


def small_sets(n: int = 8) -> tuple[ImageSet, ImageSet]:
    """Training images, n a class, and 4 a class for validation."""
    return make_set(CARD, [0, 1, 2] * n), make_set(CARD, [0, 1, 2] * 4, "val", seed=1)


class Recorder(Callback):
    """Keeps the weights of every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_epoch_end(self, method, epoch, row):
        self.weights.append(copy_of(method))


class PowerCut(Callback):
    """Breaks a run off at the end of an epoch; without one it lets a run go on that was broken off."""

    def __init__(self, epoch: int | None = None) -> None:
        self.epoch = epoch

    def on_epoch_end(self, method, epoch, row):
        if epoch == self.epoch:
            raise RuntimeError("power cut")


def copy_of(method: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in own_tensors(method).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
