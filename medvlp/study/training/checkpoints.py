"""Checkpoints of a training run: all it takes to go on as if it had never stopped.

One safetensors file, written whole after each epoch: the learned tensors, those of the best epoch, the
optimiser's momentum and the callbacks' tensors; and as JSON the epoch, the history and the facts of the run.
Random states are not needed: all that is random in an epoch comes from the seed and the epoch's number.
"""

import glob
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medvlp.data.tensor_files import read_tensors, write_tensors

KIND = "medvlp checkpoint"
HASHED = {  # facts that are hashes or long: named in errors, not shown
    "clip": "the clip",
    "card": "the card",
    "train": "the training images",
    "val": "the validation images",
    "callbacks": "the callbacks",
}


@dataclass
class Checkpoint:
    """A run after a whole epoch."""

    epoch: int  # 0 before the first
    history: list[dict[str, Any]]
    scaler: dict[str, Any]  # of the fp16 loss; empty elsewhere
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # group -> name -> tensor


def write_checkpoint(path: Path, run: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path` by this one, or leave it whole. `run` holds the facts of the run."""
    facts = {"kind": KIND, "run": run, "epoch": checkpoint.epoch}
    facts |= {"history": checkpoint.history, "scaler": checkpoint.scaler}
    groups = checkpoint.tensors.items()
    flat = {f"{group}/{name}": tensor for group, named in groups for name, tensor in named.items()}
    write_tensors(path, flat, facts)


def read_checkpoint(path: Path, run: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint at `path`, None where there is none yet.

    Raises:
        ValueError: the file is damaged, no checkpoint, or one of another run; the message says what differs.
    """
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink()  # half a checkpoint, of a run that was killed while writing it
    if not path.exists():
        return None
    try:
        flat, facts = read_tensors(path, KIND, "a checkpoint of a training run")
    except ValueError as error:
        raise ValueError(f"{error} Delete it to train from the start.") from error
    different = _differences(facts["run"], json.loads(json.dumps(run)))
    if different:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {'; '.join(different)}. "
            "Give another path, or delete it to train from the start."
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        tensors.setdefault(group, {})[rest] = tensor
    return Checkpoint(facts["epoch"], facts["history"], facts["scaler"], tensors)


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between the facts of two runs, each in a few words."""
    words = []
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key), here.get(key)
        if old == new:
            continue
        if key in HASHED:
            words.append(f"{HASHED[key]} differ{'s' if key in ('clip', 'card') else ''}")
        elif isinstance(old, dict) and isinstance(new, dict):
            words += [
                f"{name} is {old.get(name)!r} there, {new.get(name)!r} here"
                for name in dict.fromkeys([*old, *new])
                if old.get(name) != new.get(name)
            ]
        else:
            words.append(f"{key} is {old!r} there, {new!r} here")
    return words
