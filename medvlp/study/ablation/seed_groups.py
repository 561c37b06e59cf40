"""Which runs of a study belong together: the seeds of one group, and each group with its baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medvlp.data.errors import brief, check_choice, unknown_name


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that differ in their seed only."""

    key: dict[str, object]  # the fields that make the group; None where its runs have no such field
    runs: pd.DataFrame  # those done, one a seed, in the order of seeds
    failed: int

    def values(self, metric: str) -> np.ndarray:
        """The runs' own values of a metric, (S,)."""
        return self.runs[metric].to_numpy(dtype=float, na_value=np.nan)

    def __str__(self) -> str:
        return ", ".join(f"{field} {value}" for field, value in self.key.items())


def _plain(value: object) -> object:
    """A value of a table as Python has it; None where it is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or value != value else value


def run_groups(runs: pd.DataFrame, by: Sequence[str], metric: str, reserved: Sequence[str]) -> list[RunGroup]:
    """The groups of runs with the same values in the columns `by`, in order of appearance.

    Raises:
        ValueError: no runs, a column that is missing or has a `reserved` name, a metric that is text, two
            runs of one seed.
    """
    if isinstance(by, str) or not by:
        raise ValueError(f"by is {brief(by)}; give a list of fields, such as ['method'].")
    for column in ("run", "seed", *by):
        check_choice("column", column, runs.columns, "the runs")
    if metric not in runs or any(isinstance(value, str) for value in runs[metric]):
        numbers = [c for c in runs.select_dtypes("number") if c not in ("seed", *by)]
        raise ValueError(unknown_name("metric", metric, numbers, "the runs"))
    taken = [column for column in by if column in reserved]
    if taken:
        raise ValueError(f"the table has a column {brief(taken[0])} of its own; rename that field.")
    groups = []
    before_results = runs.loc[:, :"status"] if "status" in runs else runs
    settings = [column for column in before_results if column not in ("run", metric)]
    for _, rows in runs.groupby(list(by), sort=False, dropna=False):
        done = rows if "status" not in rows else rows[rows["status"] == "done"]
        key = {field: _plain(rows[field].iloc[0]) for field in by}  # groupby turns 16 beside None into 16.0
        group = RunGroup(key, done.sort_values("seed"), len(rows) - len(done))
        _check_one_a_seed(group, done[settings])
        groups.append(group)
    if not groups:
        raise ValueError("there are no runs.")
    return groups


def _check_one_a_seed(group: RunGroup, settings: pd.DataFrame) -> None:
    """Raise where two of the group's runs have one seed, and say in what else they differ."""
    twice = settings[settings["seed"].duplicated(keep=False)]
    if len(twice):
        seed = twice["seed"].iloc[0]
        twice = twice[twice["seed"] == seed]
        also = [column for column in twice if twice[column].nunique(dropna=False) > 1]
        raise ValueError(
            f"{group}: {len(twice)} runs have seed {seed}; they differ in "
            f"{', '.join(also) or 'nothing that is known'}. Add what differs to by, or leave runs out."
        )


def find_baseline(baseline: object, groups: list[RunGroup], by: Sequence[str]) -> dict[str, object]:
    """The baseline's fields and values; a bare value's field is the one of `by` that has it.

    Raises:
        ValueError: a field or value that the groups do not have, or a bare value of several fields.
    """
    values = {field: list(dict.fromkeys(group.key[field] for group in groups)) for field in by}
    if not isinstance(baseline, Mapping):
        fields = [field for field in by if _plain(baseline) in values[field]]
        if not fields:
            every = [value for field in by for value in values[field]]
            raise ValueError(unknown_name("baseline", baseline, every, f"the runs' {', '.join(by)}"))
        if len(fields) > 1:
            raise ValueError(
                f"baseline {brief(baseline)} is a value of {' and '.join(fields)}; "
                f"write which, such as {{{brief(fields[0])}: {brief(baseline)}}}."
            )
        baseline = {fields[0]: baseline}
    for field, value in baseline.items():
        check_choice("field", field, by, "baseline; it must be one of by")
        check_choice(field, _plain(value), values[field], "baseline")
    return {field: _plain(value) for field, value in baseline.items()}


def pair_with_baseline(
    groups: list[RunGroup], fixed: Mapping[str, object]
) -> list[tuple[RunGroup, RunGroup]]:
    """Every other group with its baseline: the one of the same values in all fields but the `fixed`.

    A field that no baseline has (the shots of a zero-shot method) does not count.

    Raises:
        ValueError: a group without baseline or with other seeds, or no other group.
    """
    bases = [group for group in groups if fixed.items() <= group.key.items()]
    others = [group for group in groups if group not in bases]
    lacking = [f for f in groups[0].key if all(base.key[f] is None for base in bases)]
    pairs = []
    for group in others:
        wanted = group.key | dict.fromkeys(lacking) | fixed
        base = next((base for base in bases if base.key == wanted), None)
        if base is None:
            words = ", ".join(f"{field} {value}" for field, value in wanted.items())
            raise ValueError(f"{group} has no baseline: no run has {words}. Run it, or name another.")
        seeds, theirs = group.runs["seed"].tolist(), base.runs["seed"].tolist()
        if seeds and seeds != theirs:
            raise ValueError(
                f"{group} has the seeds {seeds} but its baseline ({base}) has {theirs}; pairs need the same. "
                f"{group.failed + base.failed} of their runs failed. Run what is missing, or leave out the "
                "seeds that one of them lacks."
            )
        pairs.append((group, base))
    if not pairs:
        raise ValueError("there is nothing to compare: every group of runs is the baseline.")
    return pairs
