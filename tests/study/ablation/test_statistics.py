"""The statistics against cases worked by hand, and what they promise on classifiers of known accuracy."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medvlp.study.ablation.statistics import (
    COMPARISON,
    SUMMARY,
    Predictions,
    compare,
    holm,
    summary,
    t_interval,
)
from medvlp.study.metrics import METRICS, bootstrap, metric_values
from tests.study.ablation.simulated_runs import Runs, both_right

METRIC = "accuracy"


def labels_of(n: int) -> np.ndarray:
    return np.arange(n) % 2


def against(runs: Runs, baseline: object = "base", **options) -> pd.DataFrame:
    return compare(runs.table, runs.predictions, baseline, metric=METRIC, **options)


# What a group of runs says


def test_mean_sd_and_student_by_hand():
    # Of 10 images 6, 7 and 8 are right. t with two degrees of freedom is 4.3027.
    runs = Runs(labels_of(10))
    for seed, n in ((1, 6), (2, 7), (3, 8)):
        runs.add(np.arange(10) < n, seed, method="a")
    row = summary(runs.table, runs.predictions, METRIC, ["method"], n_bootstrap=10).iloc[0]
    assert (row["mean"], row["sd"]) == pytest.approx((0.7, 0.1))
    reach = 4.3027 * 0.1 / np.sqrt(3)
    assert (row["seeds low"], row["seeds high"]) == pytest.approx((0.7 - reach, 0.7 + reach), abs=1e-4)
    assert (row["seeds"], row["failed"], row["images"], row["measure"]) == (3, 0, 10, METRIC)


def test_one_seed_has_no_interval_over_seeds_but_one_over_images():
    runs = Runs(labels_of(40)).add(np.arange(40) < 30, method="a")
    row = summary(runs.table, runs.predictions, METRIC, n_bootstrap=200).iloc[0]
    assert np.isnan([row["sd"], row["seeds low"], row["seeds high"]]).all()
    assert row["images low"] < 0.75 < row["images high"]


def test_images_interval_is_of_the_mean_over_seeds_under_shared_resamples():
    rng = np.random.default_rng(0)
    runs = Runs(labels_of(60), groups=np.arange(60) // 3)
    for seed in (1, 2):
        runs.add(rng.random(60) < 0.7, seed, method="a")
    row = summary(runs.table, runs.predictions, "macro-F1", ["method"], n_bootstrap=300, seed=5).iloc[0]
    samples = [
        bootstrap(p.labels, p.probabilities, p.groups, 300, seed=5)["macro-F1"] for p in runs.found.values()
    ]
    expected = np.quantile(np.mean(samples, axis=0), [0.025, 0.975])
    assert [row["images low"], row["images high"]] == pytest.approx(expected)


def test_t_interval_is_scipys():
    values = [0.7, 0.72, 0.69, 0.8]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [*METRICS, "val accuracy", "new accuracy", "harmonic mean"])
def test_no_interval_leaves_what_the_metric_can_be(metric):
    runs = Runs(labels_of(8))
    for method, rights in (("base", (8, 8)), ("a", (8, 2)), ("b", (1, 5))):
        for seed, n in enumerate(rights):
            runs.add(np.arange(8) < n, seed, method=method)
    table = runs.table
    if metric not in table:
        table = table.assign(**{metric: table["accuracy"]})
    least = -1 if metric == "kappa" else 0
    found = summary(table, runs.predictions, metric, ["method"], n_bootstrap=10)
    ends = found[["seeds low", "seeds high"]]
    assert (ends.min(axis=None), ends.max(axis=None)) >= (least, 0) and ends.max(axis=None) <= 1
    assert ((ends["seeds low"] <= found["mean"]) & (found["mean"] <= ends["seeds high"])).all()
    if metric in METRICS:
        ends = compare(table, runs.predictions, "base", metric=metric, n_bootstrap=10)
        assert ends[["seeds low", "seeds high"]].abs().max(axis=None) <= 1 - least
    free = summary(table.assign(seconds=[1.0, 1, 1, 99, 1, 2]), runs.predictions, "seconds", ["method"])
    assert free["seeds low"].min() < -1 and free["seeds high"].max() > 1 and free["images low"].isna().all()


def test_a_metric_that_is_text_is_refused_with_the_numbers_that_there_are():
    runs = Runs(labels_of(10))
    runs.add(np.arange(10) < 6, 1, method="a")
    table = runs.table.assign(optimizer="sgd", n_trainable=pd.array([None], dtype="Int64"))
    for metric in ("method", "optimizer"):
        with pytest.raises(ValueError, match=f"unknown metric '{metric}' in the runs.*'accuracy'"):
            summary(table, runs.predictions, metric, ["run"])
    assert summary(table, runs.predictions, "n_trainable", ["method"])["mean"].isna().all()


def test_failed_runs_are_counted_and_left_out():
    right = np.arange(10) < 6
    runs = Runs(labels_of(10)).add(right, 1, method="a").add(right, 2, status="failed", method="a")
    runs.add(right, 1, status="failed", method="b")
    table = summary(runs.table, runs.predictions, METRIC, n_bootstrap=10).set_index("method")
    assert table["seeds"].tolist() == [1, 0] and table["failed"].tolist() == [1, 1]
    assert table.loc["a", "mean"] == pytest.approx(0.6)
    assert table.loc["b", ["mean", "images low", "images"]].isna().all()


def test_columns_are_those_named_and_groups_stand_as_they_came():
    runs = Runs(labels_of(10))
    for method, shots in (("b", 16), ("a", None), ("b", 4)):
        runs.add(np.arange(10) < 6, method=method, shots=shots)
    table = summary(runs.table.astype({"shots": object}), runs.predictions, METRIC, ["method", "shots"], 10)
    assert list(table) == ["method", "shots", *SUMMARY]
    assert table[["method", "shots"]].to_numpy().tolist() == [["b", 16], ["a", None], ["b", 4]]


# Two methods on the same images


def test_difference_is_of_the_means_and_its_interval_of_shared_resamples():
    rng = np.random.default_rng(1)
    runs = Runs(labels_of(80), groups=np.arange(80) // 2)
    for seed in (3, 1):
        runs.add(rng.random(80) < 0.6, seed, method="base").add(rng.random(80) < 0.8, seed, method="new")
    row = compare(runs.table, runs.predictions, "base", metric="kappa", n_bootstrap=200, seed=9).iloc[0]
    means = runs.table.groupby("method")["kappa"].mean()
    assert row["difference"] == pytest.approx(means["new"] - means["base"])
    drawn = {
        run: bootstrap(p.labels, p.probabilities, p.groups, 200, 9)["kappa"] for run, p in runs.found.items()
    }
    samples = (drawn["run1"] - drawn["run0"] + drawn["run3"] - drawn["run2"]) / 2
    assert [row["images low"], row["images high"]] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert row["p"] == pytest.approx(2 * ((samples <= 0).sum() + 1) / 201)
    by_seed = np.diff(runs.table.set_index("method")["kappa"].to_numpy().reshape(2, 2)).ravel()
    assert (row["seeds low"], row["seeds high"]) == pytest.approx(t_interval(by_seed))


def test_mcnemar_by_hand():
    # 1 won and 8 lost: twice the chance of at most 1 head in 9 throws.
    exact = 2 * (comb(9, 0) + comb(9, 1)) / 2**9
    new, base = both_right(50, both=30, only_a=1, only_b=8)
    row = against(Runs(labels_of(50)).add(new, method="new").add(base, method="base"), n_bootstrap=10).iloc[0]
    assert (row["won"], row["lost"]) == (1, 8)
    assert row["p McNemar"] == pytest.approx(exact) == pytest.approx(0.0390625)
    # 30 and 10: (|30 - 10| - 1)^2 / 40 = 9.025, chi-squared with one degree of freedom.
    new, base = both_right(100, both=40, only_a=30, only_b=10)
    runs = Runs(labels_of(100)).add(new, method="new").add(base, method="base")
    row = against(runs, n_bootstrap=10).iloc[0]
    assert row["p McNemar"] == pytest.approx(stats.chi2.sf(9.025, 1))


def test_mcnemar_is_of_the_mean_probabilities_of_the_seeds():
    runs = Runs(np.zeros(2, int))
    for seed, p in ((1, 0.9), (2, 0.3)):  # mean 0.6: right, although the second seed is wrong
        runs.add_probabilities(np.array([[p, 1 - p], [0.2, 0.8]]), seed, method="new")
        runs.add(np.zeros(2, bool), seed, method="base")
    assert against(runs, n_bootstrap=10).iloc[0][["won", "lost"]].tolist() == [1, 0]


def test_images_of_one_patient_are_no_independent_throws():
    new, base = both_right(50, both=30, only_a=1, only_b=8)
    runs = Runs(labels_of(50), groups=np.arange(50) // 5).add(new, method="new").add(base, method="base")
    row = against(runs, n_bootstrap=10).iloc[0]
    assert np.isnan(row["p McNemar"]) and np.isnan(row["p McNemar Holm"]) and np.isfinite(row["p"])


def test_holm_by_hand_and_as_statsmodels_has_it():
    # Sorted 0.01, 0.03, 0.04, times 3, 2, 1, and none below the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert np.isnan(holm([np.nan])).all() and len(holm([])) == 0
    p = np.random.default_rng(0).beta(0.3, 2, size=60).round(2)  # with ties
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_every_row_counts_for_holm():
    rng = np.random.default_rng(4)
    runs = Runs(labels_of(100))
    for i, accuracy in enumerate((0.6, 0.7, 0.8, 0.62)):
        runs.add(rng.random(100) < accuracy, method=f"m{i}" if i else "base")
    table = against(runs, n_bootstrap=100)
    assert len(table) == 3
    assert table["p Holm"].tolist() == pytest.approx(holm(table["p"]))
    assert table["p McNemar Holm"].tolist() == pytest.approx(holm(table["p McNemar"]))
    assert list(table) == ["method", *COMPARISON]


def test_many_comparisons_get_resamples_enough_to_survive_holm():
    runs = Runs(labels_of(40)).add(np.arange(40) < 4, method="base")
    for i in range(26):
        runs.add(np.arange(40) < 36, method=f"m{i}")
    assert against(runs)["p Holm"].max() < 0.05
    assert against(runs, n_bootstrap=1000)["p Holm"].min() > 0.05  # the reason


# What they promise


def simulated(n_pairs: int, n: int, a: float, b: float, shared: float, seed: int) -> Runs:
    """Pairs of classifiers of accuracy a and b, on n images each, who share so much of their luck."""
    rng = np.random.default_rng(seed)
    runs = Runs(labels_of(n), values=lambda labels, p: {METRIC: (p.argmax(1) == labels).mean()})
    for pair in range(n_pairs):
        luck = np.where(rng.random(n) < shared, rng.random(n), rng.random((2, n)))  # (2, n)
        runs.add(luck[0] < a, method="new", pair=pair).add(luck[1] < b, method="base", pair=pair)
    return runs


def test_paired_intervals_hold_the_true_difference_95_percent_of_the_time():
    table = against(simulated(200, 100, 0.8, 0.7, 0.8, seed=7), by=["method", "pair"], n_bootstrap=200)
    held = (table["images low"] <= 0.1) & (table["images high"] >= 0.1)
    assert len(table) == 200 and 0.91 <= held.mean() <= 0.985
    tell = (table["images high"] < 0) | (table["images low"] > 0)
    assert tell.mean() > 0.5  # they are narrow enough


def test_equal_methods_are_told_apart_no_oftener_than_the_level():
    table = against(simulated(200, 100, 0.7, 0.7, 0.5, seed=8), by=["method", "pair"], n_bootstrap=200)
    outside = (table["images low"] > 0) | (table["images high"] < 0)
    assert 0.01 <= (table["p"] < 0.05).mean() <= 0.09
    assert (outside == (table["p"] < 0.05)).mean() > 0.95  # the p value and the interval say one thing
    assert (table["p McNemar"] < 0.05).mean() <= 0.07
    assert table["difference"].mean() == pytest.approx(0, abs=0.01)
    assert table[["p Holm", "p McNemar Holm"]].min().min() > 0.05  # none, of so many that are all null


def test_a_method_against_its_own_predictions_is_a_null_result():
    right = np.arange(60) % 3 > 0
    runs = Runs(labels_of(60)).add(right, method="base").add(right, method="new")
    row = against(runs, n_bootstrap=100).iloc[0]
    assert row[["difference", "images low", "images high", "won", "lost"]].tolist() == [0, 0, 0, 0, 0]
    assert row[["p", "p Holm", "p McNemar"]].tolist() == [1, 1, 1]


def test_pairing_narrows_the_interval_of_correlated_methods():
    runs = simulated(1, 300, 0.75, 0.7, 0.9, seed=3)
    row = against(runs, n_bootstrap=1000).iloc[0]
    new, base = runs.found.values()
    unpaired = (
        bootstrap(new.labels, new.probabilities, n=1000, seed=1)[METRIC]
        - bootstrap(base.labels, base.probabilities, n=1000, seed=2)[METRIC]
    )
    low, high = unpaired.quantile([0.025, 0.975])
    assert (row["images high"] - row["images low"]) < 0.6 * (high - low)


def test_a_clear_difference_is_found_in_either_direction():
    runs = simulated(1, 300, 0.9, 0.6, 0.5, seed=5)
    row, back = against(runs).iloc[0], against(runs, "new").iloc[0]
    assert row["p"] == pytest.approx(2 / 2001) and row["images low"] > 0
    assert back["difference"] == pytest.approx(-row["difference"])
    assert (back["won"], back["lost"]) == (row["lost"], row["won"])
    assert back["p McNemar"] == pytest.approx(row["p McNemar"])


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_compared(metric):
    rng, labels = np.random.default_rng(6), np.arange(90) % 3
    runs = Runs(labels)
    for method, skill in (("base", 0.5), ("new", 2.0)):
        scores = np.exp(rng.normal(size=(90, 3)) + skill * np.eye(3)[labels])
        runs.add_probabilities(scores / scores.sum(1, keepdims=True), method=method)
    row = compare(runs.table, runs.predictions, "base", metric=metric, n_bootstrap=100).iloc[0]
    values = [metric_values(labels, p.probabilities)[metric] for p in runs.found.values()]
    assert row["difference"] == pytest.approx(values[1] - values[0])
    assert row["images low"] < row["difference"] < row["images high"]


# What is refused


def test_other_test_images_or_patients_are_refused():
    runs = Runs(labels_of(20)).add(np.arange(20) < 15, method="base").add(np.arange(20) < 12, method="new")
    p = runs.found["run1"].probabilities
    for labels, groups in ((runs.labels, runs.groups // 2), (1 - runs.labels, runs.groups)):
        runs.found["run1"] = Predictions(labels, groups, p)
        with pytest.raises(ValueError, match="method new and its baseline .method base. were tested on diff"):
            against(runs)
    runs.rows[1] |= {"method": "base", "seed": 2}
    with pytest.raises(ValueError, match="run 'run1' was tested on other images than run 'run0'"):
        summary(runs.table, runs.predictions, METRIC)


def test_a_metric_that_no_resample_can_give_is_refused():
    runs = Runs(labels_of(10)).add(np.arange(10) < 6, method="a").add(np.arange(10) < 6, method="b")
    with pytest.raises(ValueError, match="unknown metric 'seconds' in a comparison"):
        compare(runs.table.assign(seconds=1.0), runs.predictions, "a", metric="seconds")
    with pytest.raises(ValueError, match="n_bootstrap is 0"):
        against(runs, "a", n_bootstrap=0)


def test_the_baseline_is_told_in_words_with_its_field_where_it_is_no_text():
    runs = Runs(labels_of(20))
    for shots in (1, 16):
        for method in ("a", "base"):
            runs.add(np.arange(20) < 10 + shots // 2, method=method, shots=shots)
    one_run = {"method": "a", "shots": 1}
    for baseline, words in (("base", "base"), ({"shots": 16}, "shots=16"), (one_run, "a, shots=1")):
        table = against(runs, baseline, by=["method", "shots"], n_bootstrap=10)
        assert set(table["baseline"]) == {words}
