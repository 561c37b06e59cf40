"""Checkpoints of a training run: all it takes to go on as if it had never stopped.

One safetensors file, written whole after each epoch: the learned tensors, those of the best epoch, the
optimiser's momentum and the callbacks' tensors; and as JSON the history and the facts of the run.
Random states are not needed: all that is random in an epoch comes from the seed and the epoch's number.
"""

import glob
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief
from medvlp.data.tensor_files import read_tensors, write_tensors
from medvlp.methods.base import READING, Method, Reading, load_own_tensors, own_tensors
from medvlp.study.training.batches import FeatureBatches, ImageBatches
from medvlp.study.training.callbacks import Callback, EpochAverage
from medvlp.study.training.config import TrainConfig

KIND = "medvlp checkpoint"
HASHED = {  # facts that are hashes or long: named in errors, not shown
    "clip": "the clip differs",
    "card": "the card differs",
    "train": "the training images differ",
    "val": "the validation images differ",
    "callbacks": "the callbacks differ",
}


@dataclass(frozen=True)
class SoFar:
    """What whole epochs brought; replaced as one, so that Ctrl-C never leaves parts of two epochs."""

    kept: dict[str, Tensor]  # the weights that are kept: the method's own tensors by name
    history: list[dict[str, Any]]  # a row an epoch
    callbacks: list[dict[str, Tensor]]  # the callbacks' states


@dataclass
class Run:
    """One run of `fit`: what it works with, and how far it is."""

    method: Method
    train: ImageSet
    val: ImageSet | None
    config: TrainConfig
    callbacks: Sequence[Callback]
    accelerator: Accelerator  # device, precision, processes; its scaler of the loss, under fp16
    optimizer: Optimizer | None  # None where nothing is trained by gradients
    batches: FeatureBatches | ImageBatches | None  # likewise
    so_far: SoFar
    checkpoint: Path | None = None
    reading: Reading = READING  # of images; its progress: whether this process shows bars
    val_features: Tensor | None = None  # (N, D) of `val`, where the method keeps the image tower

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What makes a run this run: a checkpoint of a run with other facts is refused."""
        numbers = asdict(self.config)
        del numbers["num_workers"]  # changes no number
        return {
            "method": type(self.method).__name__,
            "method config": self.method.config,
            "config": numbers,
            "clip": self.method.clip.fingerprint,
            "card": self.method.card.hash,
            "train": self.train.fingerprint,
            "val": None if self.val is None else self.val.fingerprint,
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
        }

    def forget_unfinished_epoch(self) -> None:
        """Give the callbacks the states again that they had after the last whole epoch."""
        for callback, state in zip(self.callbacks, self.so_far.callbacks, strict=True):
            callback.load_state_dict(state)

    def write(self) -> None:
        """Replace the checkpoint by this run, or leave it whole."""
        groups = {"own": own_tensors(self.method), "kept": self.so_far.kept}
        for name, parameter in self.method.named_parameters():
            for what, tensor in self.optimizer.state.get(parameter, {}).items():  # momentum_buffer, step ...
                if tensor is not None:
                    groups.setdefault(f"optimizer/{what}", {})[name] = tensor
        groups |= {f"callback {i}": state for i, state in enumerate(self.so_far.callbacks)}
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        facts = {"run": self.facts, "history": self.so_far.history, "scaler": scaler}
        write_tensors(self.checkpoint, tensors, KIND, facts)

    def resume(self) -> None:
        """Go on from the checkpoint; nothing happens where there is none yet.

        Raises:
            ValueError: the file is damaged, no checkpoint, or one of another run; the message says what
                differs.
        """
        path = self.checkpoint
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink()  # half a checkpoint, of a run that was killed while writing it
        if not os.path.lexists(path):
            return
        try:
            tensors, stored = read_tensors(path, KIND, "a checkpoint of a training run")
        except ValueError as error:
            raise ValueError(f"{error} Delete it to train from the start.") from error
        there, here = stored["run"], json.loads(json.dumps(self.facts))
        done, wanted = (run.get("config", {}).get("epochs", 0) for run in (there, here))
        averages = any(isinstance(callback, EpochAverage) for callback in self.callbacks)  # over all epochs
        longer = len(stored["history"]) == done < wanted and not averages
        if longer:
            there["config"]["epochs"] = wanted
        different = _differences(there, here)
        if different:
            raise ValueError(
                f"checkpoint {path} belongs to another run: {'; '.join(different)}. "
                "Give another path, or delete it to train from the start."
            )

        if longer:
            warnings.warn(
                f"checkpoint {path} is of a finished run of {done} epochs, which now goes on to {wanted}. "
                f"The learning rate follows the cosine of {wanted} epochs from there, so the result is not "
                f"that of {wanted} epochs at one go.",
                stacklevel=3,
            )

        def group(name: str) -> dict[str, Tensor]:
            start = f"{name}/"
            return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}

        load_own_tensors(self.method, group("own"), f"checkpoint {path}")
        kept = {name: t.to(self.so_far.kept[name].device) for name, t in group("kept").items()}
        parameters = dict(self.method.named_parameters())
        for key, tensor in group("optimizer").items():
            what, _, name = key.partition("/")
            device = "cpu" if what == "step" else parameters[name].device  # AdamW counts its steps on the CPU
            self.optimizer.state[parameters[name]][what] = tensor.to(device)
        for i, callback in enumerate(self.callbacks):
            callback.load_state_dict(group(f"callback {i}"))
        if self.accelerator.scaler and stored["scaler"]:
            self.accelerator.scaler.load_state_dict(stored["scaler"])
        self.so_far = SoFar(kept, stored["history"], states_of(self.callbacks))


def states_of(callbacks: Sequence[Callback]) -> list[dict[str, Tensor]]:
    """Copies of the callbacks' states, on the CPU."""
    states = [callback.state_dict() for callback in callbacks]
    return [{name: t.detach().to("cpu", copy=True) for name, t in state.items()} for state in states]


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between the facts of two runs, each in a few words."""
    words = []
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key), here.get(key)
        if old == new:
            continue
        if key in HASHED:
            words.append(HASHED[key])
        elif isinstance(old, dict) and isinstance(new, dict):
            words += _differences(old, new)
        else:
            words.append(f"{key} is {brief(old)} there, {brief(new)} here")
    return words
