"""Device, precision, several processes and optimisers: what training asks of accelerate and torch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState, is_initialized
from torch import Tensor, nn
from torch.optim import Optimizer

from medvlp.methods.base import Method
from medvlp.study.training.config import TrainConfig


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
