"""The optimisers that recipes name, and their state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medvlp.study.training.config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The recipe's optimiser of these parameters."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters.values(), config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters.values(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def optimizer_tensors(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the optimiser remembers of each parameter: {"momentum_buffer/ctx": tensor, ...}."""
    return {
        f"{what}/{name}": tensor
        for name, parameter in parameters.items()
        for what, tensor in optimizer.state[parameter].items()
        if tensor is not None
    }


def load_optimizer_tensors(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Go on from what `optimizer_tensors` gave."""
    for key, tensor in tensors.items():
        what, _, name = key.partition("/")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU
        optimizer.state[parameter][what] = tensor if what == "step" else tensor.to(parameter.device)
