"""A study in processes of its own: killed and called again, and called by two processes at once.

Run as `python -m tests.study.ablation.ablations_apart FOLDER`.
This process only forks, so that a call starts at once.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import torch

from medvlp.study.ablation.store import RunStore
from tests.backbone import small_clips
from tests.study.ablation.small_study import COUNTS, noted, study
from tests.study.training.runs_apart import forked, kill_at_a_random_moment, wait

KILLS = 6
GRID = {"method": "Slow", "seed": range(10), "seconds": 0.03}


def call(folder: Path, store: str, go: float = 0.0) -> None:
    time.sleep(max(0.0, go - time.time()))
    study(folder, GRID, store)


def counted(path: Path) -> None:
    os.environ[COUNTS] = str(path)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    small_clips.open_clip_kind(folder / "clip")
    counted(folder / "whole.txt")
    if wait(forked(call, folder, "whole")):
        sys.exit("a study that nobody touched failed")

    counted(folder / "killed.txt")
    moments, store, killed, kept = random.Random(), RunStore(folder / "killed"), [], []
    for _ in range(KILLS):
        pid = forked(call, folder, "killed")
        killed.append(
            kill_at_a_random_moment(pid, lambda: len(store.ids()), moments, 0.15, len(GRID["seed"]))
        )
        kept.append(len(store.ids()))
    code = wait(forked(call, folder, "killed"))
    facts = {"killed": killed, "kept": kept, "last call": code, "begun": noted()}

    counted(folder / "two.txt")
    go = time.time() + 0.5
    pids = [forked(call, folder, "two", go) for _ in range(2)]
    facts |= {"two calls": [wait(pid) for pid in pids], "begun by two": noted()}
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
