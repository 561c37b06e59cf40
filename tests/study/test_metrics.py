"""The metrics against scikit-learn, ECE by hand, and what the bootstrap's intervals promise."""

import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from medvlp.study import metrics
from medvlp.study.metrics import (
    METRICS,
    bootstrap,
    bootstrap_all,
    class_auroc,
    metric_values,
    weighted_metrics,
)


def random_problem(n: int, n_cls: int, seed: int = 0, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, n_cls) that tell something about them; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_cls, size=n, p=np.arange(1, n_cls + 1) / np.arange(1, n_cls + 1).sum())
    scores = rng.normal(size=(n, n_cls)) + 1.2 * np.eye(n_cls)[labels]
    scores = np.round(scores, decimals)
    return labels, np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def sklearns(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """The metrics as scikit-learn has them, and ECE bin by bin; NaN or left out where one is undefined."""
    predicted, n_cls, n = p.argmax(1), p.shape[1], len(labels)
    by_class = [
        sk.roc_auc_score(labels == c, p[:, c]) if 0 < (labels == c).sum() < n else np.nan
        for c in (range(n_cls) if n_cls > 2 else [1])
    ]
    bins = [(p.max(1) * 15 // 1 == k) | ((k == 14) & (p.max(1) == 1)) for k in range(15)]
    one_class = len(np.union1d(labels, predicted)) == 1  # no disagreement to expect
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced accuracy": sk.recall_score(labels, predicted, labels=np.unique(labels), average="macro"),
        "macro-F1": sk.f1_score(labels, predicted, average="macro"),
        "AUROC": np.nanmean(by_class) if np.isfinite(by_class).any() else np.nan,
        "kappa": np.nan if one_class else sk.cohen_kappa_score(labels, predicted),
        "ECE": sum(abs(((predicted == labels) - p.max(1))[of_bin].sum()) for of_bin in bins) / n,
    }


@pytest.mark.parametrize("n_cls", [2, 5])
def test_values_are_scikit_learns(n_cls):
    labels, p = random_problem(400, n_cls)
    values = metric_values(labels, p)
    assert list(values) == list(METRICS)
    assert values == pytest.approx(sklearns(labels, p), rel=1e-12)
    auroc = sk.roc_auc_score(labels, p[:, 1] if n_cls == 2 else p, multi_class="ovr", average="macro")
    assert values["AUROC"] == pytest.approx(auroc)
    assert class_auroc(labels, p)[1] == pytest.approx(sk.roc_auc_score(labels == 1, p[:, 1]))


@pytest.mark.parametrize(
    ("labels", "second", "expected"),  # second: the probability of class 1
    [
        # bins of width 1/15: 0.95 and 0.97 share the last (one of two right), 0.61 and 0.65 another
        ([0, 1, 1, 1], [0.05, 0.03, 0.61, 0.65], 2 / 4 * abs(0.5 - 0.96) + 2 / 4 * abs(1 - 0.63)),
        ([1, 0], [0.05, 0.45], (0.95 + 0.45) / 2),  # confidently wrong, hesitantly right: two bins
        ([0, 1], [0, 1], 0),  # certain and right
    ],
)
def test_ece_by_hand(labels, second, expected):
    p = np.stack([1 - np.array(second), second], axis=1)  # (N, 2)
    assert metric_values(np.array(labels), p)["ECE"] == pytest.approx(expected)


@pytest.mark.parametrize(("n_cls", "decimals"), [(2, 6), (2, 0), (5, 6), (5, 0)])
def test_weighted_metrics_are_the_metrics_of_the_repeated_images(n_cls, decimals):
    labels, p = random_problem(150, n_cls, seed=3, decimals=decimals)
    counts = np.random.default_rng(1).multinomial(150, np.full(150, 1 / 150), size=6)
    fast = weighted_metrics(labels, p, counts.astype(float))
    for row, count in enumerate(counts):
        images = np.repeat(np.arange(150), count)
        assert fast.loc[row].to_dict() == pytest.approx(sklearns(labels[images], p[images]))


@pytest.mark.parametrize("n_cls", [2, 3])
def test_a_sample_that_lacks_a_class_has_the_metrics_of_the_others(n_cls):
    labels, p = random_problem(60, n_cls, seed=5)
    kept = labels != n_cls - 1
    fast = weighted_metrics(labels, p, kept[None].astype(float)).loc[0].to_dict()
    slow = sklearns(labels[kept], p[kept])
    assert fast == pytest.approx(slow, nan_ok=True)
    assert np.isnan(slow["AUROC"]) == (n_cls == 2)
    if n_cls == 3:
        assert slow["AUROC"] == pytest.approx(class_auroc(labels[kept], p[kept])[:2].mean())


def test_resamples_without_a_class_neither_crash_nor_warn():
    labels = np.array([0] * 11 + [1])
    p = random_problem(12, 2, seed=2)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = bootstrap(labels, p, n=300)
    lost = samples["AUROC"].isna().mean()
    assert lost == pytest.approx((11 / 12) ** 12, abs=0.1)  # the chance that the one image is not drawn
    assert samples["accuracy"].notna().all()


def test_one_class_throughout_has_no_kappa_and_no_auroc():
    labels, p = np.zeros(5, int), np.tile([0.7, 0.3], (5, 1))
    values = metric_values(labels, p)
    assert np.isnan(values["kappa"]) and np.isnan(values["AUROC"])
    assert values["accuracy"] == values["macro-F1"] == 1
    assert np.isnan(class_auroc(labels, p)).all()


def test_more_resamples_begin_with_the_fewer():
    labels, p = random_problem(81, 3)
    few, many = bootstrap(labels, p, n=130), bootstrap(labels, p, n=250)
    assert many[:100].equals(few[:100])


@pytest.mark.parametrize("n_cls", [2, 9])
def test_several_classifiers_at_once_have_the_numbers_of_each_alone(n_cls):
    labels, p = random_problem(60, n_cls)
    several = [p, p[::-1], random_problem(60, n_cls, seed=1, decimals=0)[1]]
    groups = [str(i // 3) for i in range(60)]
    for samples, of_one in zip(bootstrap_all(labels, several, groups, n=130), several, strict=True):
        assert samples.equals(bootstrap(labels, of_one, groups, n=130))


def test_images_of_their_own_are_the_default_groups():
    labels, p = random_problem(50, 2)
    assert bootstrap(labels, p, n=20).equals(bootstrap(labels, p, [f"patient {i}" for i in range(50)], n=20))


def test_copies_of_images_in_one_group_do_not_narrow_the_interval():
    labels, p = random_problem(60, 2, seed=7)
    repeated, groups = np.tile(labels, 4), np.tile(np.arange(60).astype(str), 4)
    one = bootstrap(labels, p, n=400)
    grouped = bootstrap(repeated, np.tile(p, (4, 1)), groups, n=400)
    naive = bootstrap(repeated, np.tile(p, (4, 1)), n=400)
    assert grouped["accuracy"].to_numpy() == pytest.approx(one["accuracy"].to_numpy())
    assert naive["accuracy"].std() == pytest.approx(one["accuracy"].std() / 2, rel=0.15)


def test_95_percent_intervals_hold_the_truth_about_95_percent_of_the_time():
    # An image is right with chance 0.8; 200 test sets of 150 images.
    rng = np.random.default_rng(11)
    held = 0
    for simulation in range(200):
        labels = rng.integers(2, size=150)
        predicted = np.where(rng.random(150) < 0.8, labels, 1 - labels)
        samples = bootstrap(labels, np.eye(2)[predicted] * 0.6 + 0.2, n=300, seed=simulation)["accuracy"]
        held += samples.quantile(0.025) <= 0.8 <= samples.quantile(0.975)
    assert 0.90 <= held / 200 <= 0.98


def test_scores_are_sorted_once_however_many_resamples_there_are(monkeypatch):
    labels, probabilities = random_problem(200, 5)
    searchsorted, sorted_sizes = np.searchsorted, []
    counted = lambda a, v, *how: sorted_sizes.append(len(v)) or searchsorted(a, v, *how)  # noqa: E731
    monkeypatch.setattr(np, "searchsorted", counted)
    for n in (100, 1000):
        sorted_sizes.clear()
        bootstrap(labels, probabilities, n=n)
        assert sum(sorted_sizes) <= 2 * 5 * 200  # the images, once for each class and end


def test_memory_does_not_grow_with_images_times_resamples(monkeypatch):
    labels, probabilities = random_problem(5000, 2)
    tables, peaks = [], []
    for at_once in (10**6, 30_000):  # 100 resamples at once, and 6
        monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", at_once)
        tracemalloc.start()
        tables.append(bootstrap(labels, probabilities, n=100))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 5
    assert peaks[0] < 10 * 8 * 5000 * 100  # of ten arrays of 100 resamples
    pd.testing.assert_frame_equal(*tables, rtol=1e-12)
