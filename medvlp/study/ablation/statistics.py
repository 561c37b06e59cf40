"""What the runs of a study say: means with intervals, and paired comparisons on the same images.

There are two questions, and each has its own 95 % interval; neither covers the other.
Would other seeds (other shots, starting values, order) say the same? Student's t over the runs' values.
Would other test images? The bootstrap of the test set's groups, with the trained methods as they are.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from medvlp.data.errors import brief, check_choice, check_kinds
from medvlp.data.html import Table
from medvlp.study.ablation.seed_groups import RunGroup, find_baseline, pair_with_baseline, run_groups
from medvlp.study.metrics import METRICS, RANGES, bootstrap_all, check_resamples, percentiles

SUMMARY = (
    "measure", "seeds", "failed", "images",
    "mean", "sd", "seeds low", "seeds high", "images low", "images high",
)  # fmt: skip
COMPARISON = (
    "baseline", "measure", "seeds", "images", "difference", "images low", "images high", "p", "p Holm",
    "seeds low", "seeds high", "won", "lost", "p McNemar", "p McNemar Holm",
)  # fmt: skip
_FEW = 25  # discordant images below which McNemar's test is exact
_RESAMPLES, _RESAMPLES_EACH = 2000, 80


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one run said of its test images.

    `groups` numbers what is resampled: the patients, or each image where images are their own.
    """

    labels: np.ndarray  # (N,) int
    groups: np.ndarray  # (N,) int
    probabilities: np.ndarray  # (N, n_cls)

    def same_images(self, other: "Predictions") -> bool:
        """Whether the two are of one test set: the same labels and groups, image by image."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.groups, other.groups)


def t_interval(values: Sequence[float], least: float = -np.inf, most: float = np.inf) -> tuple[float, float]:
    """Student's 95 % t interval of the mean of independent runs; (NaN, NaN) for a single one.

    Of values that lie between `least` and `most`, such as accuracies, it is cut off there: their mean is
    never beyond, so it holds the mean as often.

    It takes the values as normal. With three it reaches 2.5 standard deviations to each side; it has
    no width where the seeds change nothing, as in zero-shot.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    low, high = DescrStatsW(np.asarray(values, dtype=float)).tconfint_mean()
    return max(least, float(low)), min(most, float(high))


def _range(metric: str) -> tuple[float, float]:
    """Least and most of a metric, of test or validation images; infinite where nothing is known of it."""
    return RANGES.get(metric.removeprefix("val "), (-np.inf, np.inf))


def holm(p: Sequence[float]) -> np.ndarray:
    """P values corrected for their number by Holm's method; NaN stays, and is not counted.

    Example:
        >>> import medvlp
        >>> medvlp.holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    check_kinds(holm, locals())
    p = np.asarray(p, dtype=float)
    known = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


@dataclass(frozen=True, eq=False)
class _Tested:
    samples: np.ndarray  # (n_bootstrap, S), the metric by resample and seed
    mean: Predictions  # of the seeds' probabilities


def p_of_zero(samples: np.ndarray | pd.Series) -> float:
    """Two-sided p of resampled differences: see `compare`."""
    known = samples[np.isfinite(samples)]
    fewer = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (fewer + 1) / (len(known) + 1))


def mcnemar_of(ours: Predictions, theirs: Predictions) -> dict[str, object]:
    """The columns won, lost and p McNemar of `compare`."""
    we, they = (p.probabilities.argmax(1) == p.labels for p in (ours, theirs))  # (N,) each
    won, lost = int((we & ~they).sum()), int((they & ~we).sum())
    table = [[int((we & they).sum()), won], [lost, int((~we & ~they).sum())]]
    independent = len(np.unique(ours.groups)) == len(ours.groups)
    p = mcnemar(table, exact=won + lost < _FEW).pvalue if independent else np.nan
    return {"won": won, "lost": lost, "p McNemar": p}


def _test(
    groups: Iterable[RunGroup], predictions: Callable[[Hashable], Predictions], metric: str, n: int, seed: int
) -> dict[RunGroup, _Tested]:
    """Groups with runs under resamples that the test set and the seed alone decide, drawn once a test set."""
    check_resamples(n)
    by_test: dict[bytes, dict[RunGroup, list[Predictions]]] = {}
    for group in groups:
        of_seeds = _of_one_test_set(group, predictions)
        key = of_seeds[0].labels.tobytes() + of_seeds[0].groups.tobytes()
        by_test.setdefault(key, {})[group] = of_seeds
    tested = {}
    for of_groups in by_test.values():
        every = [p for of_seeds in of_groups.values() for p in of_seeds]
        first, of_runs = every[0], [p.probabilities for p in every]
        drawn = iter(bootstrap_all(first.labels, of_runs, first.groups, n, seed, [metric]))
        for group, of_seeds in of_groups.items():
            samples = np.stack([next(drawn)[metric] for _ in of_seeds], axis=1)
            mean = np.mean([p.probabilities for p in of_seeds], axis=0)  # (N, n_cls)
            tested[group] = _Tested(samples, Predictions(first.labels, first.groups, mean))
    return tested


def _of_one_test_set(group: RunGroup, predictions: Callable[[Hashable], Predictions]) -> list[Predictions]:
    """The group's predictions, one a seed; ValueError where they are of different images."""
    of_seeds = [predictions(run) for run in group.runs["run"]]
    first = of_seeds[0]
    for run, other in zip(group.runs["run"], of_seeds, strict=True):
        if not first.same_images(other):
            raise ValueError(
                f"{group}: run {brief(run)} was tested on other images than run "
                f"{brief(group.runs['run'].iloc[0])}; add the field that chooses the test set to by."
            )
    return of_seeds


def _paired(
    group: RunGroup, base: RunGroup, ours: _Tested, theirs: _Tested, metric: str
) -> dict[str, object]:
    if not ours.mean.same_images(theirs.mean):
        raise ValueError(
            f"{group} and its baseline ({base}) were tested on different images, "
            f"{len(ours.mean.labels)} and {len(theirs.mean.labels)} of them; pairs need the same."
        )
    by_seed = group.values(metric) - base.values(metric)  # (S,)
    samples = (ours.samples - theirs.samples).mean(1)  # (n_bootstrap,)
    least, most = _range(metric)
    row = {"images": len(ours.mean.labels), "difference": by_seed.mean(), "p": p_of_zero(samples)}
    row["images low"], row["images high"] = percentiles(samples)
    row["seeds low"], row["seeds high"] = t_interval(by_seed, least=least - most, most=most - least)
    return row | mcnemar_of(ours.mean, theirs.mean)


def _in_words(baseline: Mapping[str, object]) -> str:
    """A baseline's values; what is no text, such as 16 or True, stands behind the name of its field."""
    return ", ".join(v if isinstance(v, str) else f"{field}={v}" for field, v in baseline.items())


def _table(rows: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    table = Table(rows, columns=columns)
    for field in (column for column in columns if any(column in row and row[column] is None for row in rows)):
        table[field] = pd.Series([row[field] for row in rows], dtype=object)  # else 16 would become 16.0
    counts = [c for c in ("seeds", "failed", "images", "won", "lost") if c in table]
    return table.astype(dict.fromkeys(counts, "Int64"))  # missing where no run was done


def summary(
    runs: pd.DataFrame,
    predictions: Callable[[Hashable], Predictions],
    metric: str = "balanced accuracy",
    by: Sequence[str] = ("method",),
    n_bootstrap: int = 1000,
    seed: int = 1,
) -> pd.DataFrame:
    """Mean and intervals of a metric over the seeds of each group of runs.

    Args:
        runs: One row a run, with the columns run, seed, the metric, those of `by`, and status where runs can
            have failed ("done" is used, the others are counted).
        predictions: Gives a run's predictions by its entry in the column run.
        metric: One of `metrics.METRICS`, or another numeric column, which then has no interval over images.
        by: Columns whose values make a group. Runs of a group must differ in their seed only.
        n_bootstrap: Number of resamples of the test images; the same ones for all runs on one test set.
        seed: Of the resampling.

    Returns:
        A row a group, in order of appearance, with the columns `by` and `SUMMARY`:
        mean, sd: over the seeds that are done, sd with n - 1.
        seeds low, seeds high: 95 % `t_interval` of the mean, about other seeds, within the metric's range.
        images low, images high: 95 % percentile interval of the mean over these seeds, about other images.

    Raises:
        ValueError: an unknown column, a metric that is text, two runs of one seed in a group, runs of a
            group on different images.
    """
    rows = []
    groups = run_groups(runs, by, metric, SUMMARY)
    with_runs = [group for group in groups if len(group.runs) and metric in METRICS]
    tested = _test(with_runs, predictions, metric, n_bootstrap, seed) if with_runs else {}
    for group in groups:
        values = group.values(metric)  # (S,)
        row = {"measure": metric, "seeds": len(values), "failed": group.failed}
        if len(values):
            row |= {"mean": values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else np.nan}
            least, most = _range(metric)
            row["seeds low"], row["seeds high"] = t_interval(values, least=least, most=most)
        if group in tested:
            row["images"] = len(tested[group].mean.labels)
            row["images low"], row["images high"] = percentiles(tested[group].samples.mean(1))
        rows.append(group.key | row)
    return _table(rows, [*by, *SUMMARY])


def compare(
    runs: pd.DataFrame,
    predictions: Callable[[Hashable], Predictions],
    baseline: object,
    by: Sequence[str] = ("method",),
    metric: str = "balanced accuracy",
    n_bootstrap: int | None = None,
    seed: int = 1,
) -> pd.DataFrame:
    """Each group of runs against the baseline, on the same images and the same seeds.

    A small p says that these trained runs differ on images like these; whether runs of other seeds would is
    what "seeds low" and "seeds high" say. A large p does not say that two methods are equal, only that these
    images do not tell them apart; what they leave possible is the interval.

    Args:
        runs: As `summary` takes them.
        predictions: As `summary` takes them.
        baseline: Field and value of the baseline, such as {"method": "CoOp"}, or only the value, where one
            field of `by` has it. A group is compared with the baseline of its own values in the other fields
            (the same shots, say), save in fields that the baseline lacks.
        by: Columns whose values make a group. Runs of a group must differ in their seed only.
        metric: One of `metrics.METRICS`.
        n_bootstrap: Number of resamples; by default 2,000, or 80 a comparison where those are more, because
            no p is below 2 / (n_bootstrap + 1) and Holm multiplies it by the number of comparisons.
        seed: Of the resampling.

    Returns:
        A row a group other than the baseline, with the columns `by` and `COMPARISON`:
        baseline: its values in words, such as "CoOp" or "n_ctx=16".
        difference: mean over seeds of the metric, less the baseline's.
        images low, images high: 95 % percentile interval of the difference; both are resampled together.
        p: two-sided, of the same resamples: twice the share on the far side of zero, so below 0.05 where the
            interval leaves zero out (Efron and Tibshirani 1993); one is added to both counts.
        seeds low, seeds high: `t_interval` of the seeds' differences.
        won, lost: images that only this group, or only the baseline, names right; by the mean of the seeds'
            probabilities.
        p McNemar: of won against lost (McNemar 1947), which is about accuracy, whatever the metric. Exact
            below 25 such images, else chi-squared with continuity correction. NaN where images share a
            group, since the test takes images as independent.
        p Holm, p McNemar Holm: corrected for the number of rows (Holm 1979).

    Raises:
        ValueError: an unknown column, metric or baseline; a group without baseline; seeds or test images that
            differ from the baseline's.
    """
    check_choice("metric", metric, METRICS, "a comparison")
    groups = run_groups(runs, by, metric, COMPARISON)
    fixed = find_baseline(baseline, groups, by)
    pairs = pair_with_baseline(groups, fixed)
    n = max(_RESAMPLES, _RESAMPLES_EACH * len(pairs)) if n_bootstrap is None else n_bootstrap
    with_runs = dict.fromkeys(one for pair in pairs for one in pair if len(pair[0].runs))
    tested = _test(with_runs, predictions, metric, n, seed) if with_runs else {}
    rows = []
    for group, base in pairs:
        row = {"baseline": _in_words(fixed), "measure": metric, "seeds": len(group.runs)}
        if len(group.runs):
            row |= _paired(group, base, tested[group], tested[base], metric)
        rows.append(group.key | row)
    table = _table(rows, [*by, *COMPARISON])
    for column in ("p", "p McNemar"):
        table[f"{column} Holm"] = holm(table[column])
    return table
