"""Settings chosen on validation with one seed, and kept for the others."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvlp.data.errors import unknown_name
from medvlp.study.ablation.plan import Run

NOT_CHOSEN = ("method", "data", "test", "seed", "shots")  # what a comparison compares, or repeats


def keys_to_choose(runs: Sequence[Run], over: str | Sequence[str]) -> list[str]:
    """The keys whose values are chosen: those of `over` with several values in the runs of the first seed.

    Raises:
        ValueError: a key that the grids do not have, or that is nothing to choose.
    """
    over = [over] if isinstance(over, str) else list(over)
    known = [key for key in dict.fromkeys(key for run in runs for key in run.given) if key not in NOT_CHOSEN]
    for key in over:
        if key not in known:
            raise ValueError(unknown_name("key to tune", key, known, "the grid"))
    first = of_first_seed(runs)
    return [key for key in over if len({_value(run, key) for run in first}) > 1]


def of_first_seed(runs: Sequence[Run]) -> list[Run]:
    """The runs whose seed is the grid's first."""
    return [run for run in runs if run.seed == runs[0].seed]


def settled(runs: Sequence[Run], chosen: Iterable[str], over: Sequence[str]) -> list[Run]:
    """The runs that have in `over` what the chosen run has that is like them in all else but the seed.

    Args:
        runs: Of all seeds.
        chosen: Ids of runs among them, one for each combination of the other settings.
        over: Keys of the grid.
    """
    chosen = set(chosen)
    picked = {_without_seed(run, ()) for run in runs if run.id in chosen}
    decided = {_without_seed(run, over) for run in runs if run.id in chosen}
    # where no run of the first seed could be chosen from (all failed), all are kept, to be seen as failures
    return [
        run
        for run in runs
        if _without_seed(run, ()) in picked or _without_seed(run, over) not in decided
    ]  # fmt: skip


def _value(run: Run, key: str) -> Any:
    """A setting by the key that grids have for it; None where the run's method has no such argument."""
    return next((run.settings[name] for name in _names(key) if name in run.settings), None)


def _without_seed(run: Run, over: Sequence[str]) -> str:
    """The run's settings but its seed and those in `over`, as text."""
    left_out = {name for key in ("seed", *over) for name in _names(key)}
    kept: Mapping[str, Any] = {key: value for key, value in run.settings.items() if key not in left_out}
    return json.dumps(kept, sort_keys=True)


def _names(key: str) -> tuple[str, str, str]:
    """What a grid's key may be called in a run's settings."""
    return key, f"config.{key}", f"method.{key}"
