"""Training runs that need processes of their own: killed and resumed, and on two processes at once.

Run as `python -m tests.study.training.runs_apart FOLDER`.
This process only forks, so it never computes a gradient:
after that a forked process could compute none.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import notebook_launcher
from safetensors import safe_open
from safetensors.torch import save_file

from medvlp.backbone.clip import Clip
from medvlp.methods.base import own_tensors
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, Prototypes, Tinted, small_clip, small_sets

KILLS = 10
LONG = TrainConfig(epochs=100, batch_size=8, lr=0.05, views=2, num_workers=0)
SHORT = TrainConfig(epochs=3, batch_size=6, lr=0.05, views=2, num_workers=0)


def train_long(clip: Clip, folder: Path, checkpoint: Path) -> None:
    method = Prototypes(clip, CARD, dropout=0.3)
    options = {"callbacks": [EpochAverage(LONG.epochs)], "cache_dir": folder / "cache", "progress": False}
    fit(method, *small_sets(), LONG, checkpoint=checkpoint, **options)


def train_short(clip: Clip, folder: Path, name: str) -> None:
    for kind in (Prototypes, Tinted):
        method = kind(clip, CARD)
        history = fit(method, *small_sets(), SHORT, cache_dir=folder / "cache", progress=False)
        rank = os.environ.get("RANK", "0")
        save_file(own_tensors(method), folder / f"{kind.__name__}-{name}-{rank}.safetensors")
        history.to_json(folder / f"{kind.__name__}-{name}-{rank}.json", double_precision=15)


def forked(run: Callable, *args: object) -> int:
    """Start `run` in a process of its own and return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(*args)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_a_random_moment(
    pid: int, done: Callable[[], int], moments: random.Random, pause: float, most: int
) -> bool:
    """SIGKILL some steps of `done`, which ends at `most`, from now; whether the process was still at work."""
    start, wanted = time.monotonic(), min(most, done() + moments.randrange(3))
    while done() < wanted and time.monotonic() < start + 60:
        time.sleep(0.0005)
    time.sleep(moments.uniform(0, pause))
    os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def last_epoch(checkpoint: Path) -> int:
    """The last epoch in a checkpoint, 0 where there is none."""
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="pt") as file:
        return len(json.loads(file.metadata()["facts"])["history"])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    clip = small_clip(folder / "clip")
    whole = wait(forked(train_long, clip, folder, folder / "whole.safetensors"))
    one = wait(forked(train_short, clip, folder, "one"))
    if whole or one:
        sys.exit("a run that nobody touched failed")

    checkpoint, moments = folder / "killed.safetensors", random.Random()
    killed, resumed_at = [], []
    for _ in range(KILLS):
        pid = forked(train_long, clip, folder, checkpoint)
        epochs = partial(last_epoch, checkpoint)
        killed.append(kill_at_a_random_moment(pid, epochs, moments, 0.02, LONG.epochs))
        resumed_at.append(last_epoch(checkpoint))
    code = wait(forked(train_long, clip, folder, checkpoint))
    facts = {"killed": killed, "resumed at": resumed_at, "last run": code}
    (folder / "kills.json").write_text(json.dumps(facts))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    notebook_launcher(train_short, (clip, folder, "two"), num_processes=2, use_port=port)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
