"""A small study: a grid of quick runs that count themselves, on a small CLIP and coloured squares."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from medvlp.backbone.clip import Clip
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data
from medvlp.study.ablation.study import Study, run_ablation
from tests.methods.small import make_set
from tests.study.training.small_training import CARD, Prototypes

RECIPE = {"epochs": 4, "batch_size": 8, "lr": 0.05, "views": 1, "num_workers": 0}
COUNTS = "RUNS_OF_A_TEST"  # environment variable: the file with one line for each run begun


def note(word: object) -> None:
    """Add a line to the file of runs begun; lines of several processes do not mix."""
    if COUNTS in os.environ:
        handle = os.open(os.environ[COUNTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{word} {os.getpid()}\n".encode())
        os.close(handle)


def noted() -> list[tuple[str, int]]:
    """What was noted, and by which process."""
    path = Path(os.environ[COUNTS])
    lines = path.read_text().splitlines() if path.exists() else []
    return [(word, int(pid)) for word, pid in map(str.split, lines)]


class Slow(Prototypes):
    """Prototypes that count themselves and take at least `seconds` to build."""

    def __init__(self, clip: Clip, card: DataCard, seconds: float = 0.0, seed: int = 1) -> None:
        super().__init__(clip, card, dropout=0.2, seed=seed)
        note(seed)
        time.sleep(seconds)


class Mortal(Prototypes):
    """Prototypes that kill their process the first time if their fate is "once"."""

    def __init__(self, clip: Clip, card: DataCard, fate: str = "lives", seed: int = 1) -> None:
        super().__init__(clip, card, seed=seed)
        before = [word for word, _ in noted()]
        note(fate)
        if fate == "once" and fate not in before:
            os.kill(os.getpid(), signal.SIGKILL)


class Raises(Prototypes):
    """Prototypes that cannot be built with seed 2."""

    def __init__(self, clip: Clip, card: DataCard, seed: int = 1) -> None:
        super().__init__(clip, card, seed=seed)
        note(seed)
        if seed == 2:
            raise ValueError("seed 2 is not to my liking")


METHODS = {"Slow": Slow, "Mortal": Mortal, "Raises": Raises, "Prototypes": Prototypes}


def small_data(n: int = 8) -> Data:
    """Three classes, n training images of each, 4 for validation and 10 for the test."""
    sizes = {"train": n, "val": 4, "test": 10}
    sets = [make_set(CARD, [0, 1, 2] * k, name, seed) for seed, (name, k) in enumerate(sizes.items())]
    return Data(CARD, *sets, record={})


def clip_in(folder: Path) -> str:
    """The name of the CLIP in a folder, for `load_clip`."""
    return f"local-dir:{folder / 'clip'}"


def study(folder: Path, grid: Any, store: str = "store", **options: Any) -> Study:
    """`run_ablation` on the small data, with the small CLIP of `folder`."""
    options = {"data": small_data(), "config": RECIPE, "methods": METHODS, "progress": False} | options
    place = {"store": folder / store, "clip": clip_in(folder), "cache_dir": folder / "cache"}
    return run_ablation(grid, **place, **options)
