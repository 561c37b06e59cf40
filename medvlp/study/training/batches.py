"""What an epoch steps through and on what: images, their order and views; device, precision, optimiser."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState, is_initialized
from torch import Tensor, nn
from torch.optim import Optimizer

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import ImageLoader, readers, training_features
from medvlp.data.datasets import ImageSet
from medvlp.data.files import sha256
from medvlp.methods.base import Method, Reading
from medvlp.study.training.config import TrainConfig


@dataclass
class Batch:
    """This process's part of a batch."""

    inputs: Tensor  # (b, D) features or (b, 3, S, S) images, on the device
    labels: Tensor  # (b,)
    size: int  # images in the whole batch, over all processes


def epoch_seed(config: TrainConfig, epoch: int, use: str) -> int:
    """A seed for one use in one epoch, the same whatever was trained before."""
    return int(sha256(f"seed {config.seed}", f"epoch {epoch}", use)[:15], 16)


def epoch_order(config: TrainConfig, n: int, epoch: int) -> tuple[list[Tensor], list[int | None]]:
    """The batches of an epoch, as image numbers (B,), and the view of each of the n images.

    Both depend on the config's seed and the epoch alone.
    """
    random = torch.Generator().manual_seed(epoch_seed(config, epoch, "order"))
    order = torch.randperm(n, generator=random)  # (n,)
    full = n // config.batch_size * config.batch_size if config.drop_last else n
    batches = list(order[:full].split(config.batch_size)) if full else [order]
    if config.views == 0:
        return batches, [None] * n
    if config.views == "fresh":
        return batches, [epoch_seed(config, epoch, "view")] * n
    return batches, torch.randint(config.views, (n,), generator=random).tolist()


def n_steps(config: TrainConfig, n: int) -> int:
    """The steps of an epoch over n images."""
    return max(1, n // config.batch_size) if config.drop_last else ceil(n / config.batch_size)


def class_weights(config: TrainConfig, train: ImageSet) -> Tensor | None:
    """What an image of each class counts in the loss, (n_cls,), 1 on average over the images; None: all 1."""
    if config.class_weight is None:
        return None
    counts = train.labels.bincount(minlength=len(train.card.classnames))  # (n_cls,)
    return len(train) / ((counts > 0).sum() * counts.clamp(min=1)).float()


class FeatureBatches:
    """Batches of cached features. All views lie on the device; a batch is an indexed tensor."""

    def __init__(self, clip: Clip, images: ImageSet, config: TrainConfig, reading: Reading) -> None:
        self.config = config
        how = {**vars(reading), "crop": config.crop, "flip": config.flip}
        self.features = training_features(clip, images, config.views, **how)  # (K, N, D)
        self.labels = images.labels.to(clip.device)  # (N,)

    def epoch(self, epoch: int, process: int, n_processes: int) -> Iterator[Batch]:
        """The batches of an epoch; process p of P has every P-th image of each."""
        batches, views = epoch_order(self.config, len(self.labels), epoch)
        view_of = torch.tensor([view or 0 for view in views], device=self.labels.device)  # (N,)
        for batch in batches:
            rows = batch[process::n_processes].to(self.labels.device)  # (b,)
            yield Batch(self.features[view_of[rows], rows], self.labels[rows], len(batch))


class ImageBatches:
    """Batches of images, read and preprocessed in each epoch by processes that stay from epoch to epoch."""

    def __init__(self, clip: Clip, images: ImageSet, config: TrainConfig) -> None:
        self.clip, self.config, self.n = clip, config, len(images)
        # this process's part of an epoch: for each batch the images' numbers and views
        self.part: list[list[tuple[int, int | None]]] = []
        workers = readers(images, config.batch_size, config.num_workers)
        how = {"persistent": True, "crop": config.crop, "flip": config.flip}
        self.loader = ImageLoader(clip, images, self.part, workers, **how)

    def epoch(self, epoch: int, process: int, n_processes: int) -> Iterator[Batch]:
        """The batches of an epoch; process p of P has every P-th image of each."""
        batches, views = epoch_order(self.config, self.n, epoch)
        self.part[:] = [[(i, views[i]) for i in batch[process::n_processes].tolist()] for batch in batches]
        for batch, (images, labels) in zip(batches, self.loader, strict=True):  # (b, 3, S, S), (b,)
            yield Batch(images.to(self.clip.device), labels.to(self.clip.device), len(batch))


class Logits(nn.Module):
    """One `forward` for either kind of input and of loss, which is what accelerate wraps."""

    def __init__(self, method: Method, from_features: bool) -> None:
        super().__init__()
        self.method, self.from_features = method, from_features

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) or images (B, 3, S, S) -> logits (B, n_cls), and what else is minimised, (B,)."""
        if self.method.keeps_image_tower and not self.from_features:
            inputs = self.method.clip.encode_images(inputs)  # (B, D)
        return self.method.training_logits(inputs)


@contextmanager
def one_accelerator(method: Method, config: TrainConfig) -> Iterator[Accelerator]:
    """An accelerator for one run, on the device of the method's CLIP (each process its own, if several)."""
    cpu = method.clip.device.type == "cpu"
    if config.precision == "fp16" and cpu:
        raise ValueError("precision='fp16' needs a GPU, but the clip is on the CPU; use 'bf16' or 'fp32'.")
    precision = "no" if config.precision == "fp32" else config.precision
    with _no_state_left(), _no_state_left():  # Ctrl-C may come while the inner one cleans up
        yield Accelerator(cpu=cpu, mixed_precision=precision)


@contextmanager
def _no_state_left() -> Iterator[None]:
    """Accelerate has one state a process; left there, it would forbid another precision, and launchers."""
    ours = not is_initialized()
    try:
        yield
    finally:
        if ours and PartialState._shared_state:
            AcceleratorState._reset_state(reset_partial_state=PartialState().num_processes == 1)


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimiser of these parameters."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.lr, eps=config.eps, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
