"""Metrics of a classifier and their bootstrap, as plain functions of labels and probabilities.

One set of definitions serves a data set and many resamples of it at once; tests hold it to scikit-learn's.
A metric that is not defined for a sample (AUROC of a class that it lacks) leaves that class out, or is NaN.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csc_array
from tqdm.auto import tqdm

METRICS = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "kappa", "ECE")
OF_CLASSES = ("base accuracy", "new accuracy", "harmonic mean")  # what base_to_new adds to the metrics
RANGES = dict.fromkeys(METRICS + OF_CLASSES, (0.0, 1.0)) | {"kappa": (-1.0, 1.0)}  # of their values
ECE_BINS = 15
_RESAMPLES_AT_ONCE, _WEIGHTS_AT_ONCE = 100, 2**21  # resamples, and their images in all, that memory holds


def metric_values(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The six metrics of labels (N,) and probabilities (N, n_cls), each image counted once."""
    return weighted_metrics(labels, probabilities, np.ones((1, len(labels)))).iloc[0].to_dict()


def class_auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest, (n_cls,); NaN where a class has no image or all of them."""
    once = np.ones((len(labels), 1))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        won = [np.divide(*won_pairs(labels == c, p, once)) for c, p in enumerate(probabilities.T)]
    return np.concatenate(won)


def bootstrap(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[str] | None = None,
    n: int = 1000,
    seed: int = 1,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """The metrics of `n` resamples with replacement, (n, len(metrics)).

    labels (N,), probabilities (N, n_cls). Whole groups are drawn, as many as there are, because images of one
    patient are no independent evidence; without `groups` (N names) each image is its own.
    """
    return bootstrap_all(labels, [probabilities], groups, n, seed, metrics)[0]


def bootstrap_all(
    labels: np.ndarray,
    probabilities: Sequence[np.ndarray],
    groups: Sequence[str] | None = None,
    n: int = 1000,
    seed: int = 1,
    metrics: Sequence[str] = METRICS,
) -> list[pd.DataFrame]:
    """`bootstrap` of several classifiers on the same images, which are drawn once for all of them."""
    rng = np.random.default_rng(seed)
    # of_image (N,): the number of each image's group; names (G,)
    of_image, names = pd.factorize(np.arange(len(labels)) if groups is None else np.asarray(groups))
    size = len(names)
    answers, chunks = _Answers(labels, probabilities), []
    for rows in _at_once(n, len(labels)):
        drawn = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size  # (R, G)
        counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)  # (R, G)
        chunks.append(answers.metrics(counts[:, of_image].astype(float), metrics))
    samples = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in metrics}  # (n, M) each
    return [pd.DataFrame({name: samples[name][:, m] for name in metrics}) for m in range(len(probabilities))]


def weighted_metrics(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """Metrics under each row of weights: (N,), (N, n_cls), (R, N) -> (R, 6), columns METRICS.

    accuracy: share of images whose most probable class is right.
    balanced accuracy: mean recall of the classes that have images.
    macro-F1: mean F1 of the classes that are true or predicted for at least one image.
    AUROC: two classes, of the second one; more, the mean over classes of one against the rest.
    kappa: Cohen's, unweighted.
    ECE: expected calibration error (Guo et al. 2017), the mean gap between confidence and accuracy in 15 bins
        of equal width of the confidence, which is the predicted class's probability:

            ECE = sum_k (n_k / N) |accuracy_k - confidence_k|

        It is never below zero, so small samples, and resamples of them, overstate it.
    """
    values = _Answers(labels, [probabilities]).metrics(weights, METRICS)
    return pd.DataFrame({name: of_name[:, 0] for name, of_name in values.items()})


class _Answers:
    """What M classifiers say of the same images. What no weight changes is computed once.

    Args:
        labels: (N,).
        probabilities: (N, n_cls), M times.
    """

    def __init__(self, labels: np.ndarray, probabilities: Sequence[np.ndarray]) -> None:
        self.labels, self.probabilities = labels, probabilities
        self.n_cls = probabilities[0].shape[1]
        self.predicted = np.stack([p.argmax(1) for p in probabilities], axis=1)  # (N, M)
        self.of_class = [np.flatnonzero(labels == c) for c in range(self.n_cls)]  # N_c images each

    def metrics(self, weights: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """The `metrics` of `weighted_metrics` under weights (R, N): (R, M) each."""
        of_class = [weights[:, images] for images in self.of_class]  # (R, N_c) each
        n_true = np.stack([w.sum(1) for w in of_class], axis=1)[:, None]  # (R, 1, n_cls)
        pairs = zip(of_class, self._right, strict=True)
        hits = np.stack([w @ right for w, right in pairs], axis=2)  # (R, M, n_cls)
        total = n_true.sum(2)  # (R, 1)

        by_image = np.ascontiguousarray(weights.T)  # (N, R), many times faster to sum

        def n_predicted() -> np.ndarray:  # (R, M, n_cls)
            return np.stack([_sums(p, by_image, self.n_cls).T for p in self.predicted.T], axis=1)

        def kappa() -> np.ndarray:
            observed, expected = hits.sum(2) / total, (n_true * n_predicted()).sum(2) / total**2
            return (observed - expected) / (1 - expected)

        formulas = {
            "accuracy": lambda: hits.sum(2) / total,
            "balanced accuracy": lambda: np.nanmean(hits / n_true, axis=2),
            "macro-F1": lambda: np.nanmean(2 * hits / (n_true + n_predicted()), axis=2),
            "AUROC": lambda: np.stack([_auroc(ranked, by_image) for ranked in self._ranked], axis=1),
            "kappa": kappa,
            "ECE": lambda: np.stack([self._ece(p, weights) for p in self.probabilities], axis=1) / total,
        }
        with np.errstate(invalid="ignore"), warnings.catch_warnings():  # 0 / 0 is NaN; a mean leaves it out
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return {name: formulas[name]() for name in metrics}

    @cached_property
    def _right(self) -> list[np.ndarray]:
        """Which of a class's images each classifier names right, (N_c, M) for each class."""
        return [(self.predicted[images] == c).astype(float) for c, images in enumerate(self.of_class)]

    @cached_property
    def _ranked(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each classifier the images of each class that AUROC asks for, and their `_places`."""
        classes = [1] if self.n_cls == 2 else range(self.n_cls)
        images = {c: self.labels == c for c in classes}  # (N,) each
        return [[(own, _places(own, p[:, c])) for c, own in images.items()] for p in self.probabilities]

    def _ece(self, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """N times the expected calibration error, (R,)."""
        predicted, confidence = p.argmax(1), p.max(1)  # (N,)
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)  # (N,)
        gap = (predicted == self.labels) - confidence  # (N,)
        return np.abs(weights @ (np.eye(ECE_BINS)[bins] * gap[:, None])).sum(1)


def _auroc(ranked: Sequence[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> np.ndarray:
    """Mean AUROC, (R,), of classes, of which each is (its images, `_places`), under weights (N, R)."""
    return np.nanmean([np.divide(*_won_pairs(*of_class, weights)) for of_class in ranked], axis=0)


def _sums(of: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Sums of the weights (N, R) of the images of each of n numbers, (n, R); `of` (N,) has each image's."""
    one_each = csc_array((np.ones(len(of)), of, np.arange(len(of) + 1)), shape=(n, len(of)))
    return one_each @ weights


def won_pairs(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose positive scores above the negative, ties half, and all pairs, (R,) each; weights (N, R)."""
    return _won_pairs(positive, _places(positive, score), weights)


def _places(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Where each image's score stands among the positives' T different ones, (N,).

    2t + 1 is the score number t itself, 2t is between the one before it and it.
    """
    scores = np.unique(score[positive])  # (T,), in order
    return sum(np.searchsorted(scores, score, side).astype(np.int32) for side in ("left", "right"))


def _won_pairs(
    positive: np.ndarray, places: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`won_pairs` of images whose `_places` are known."""
    T = (places[positive].max(initial=-1) + 1) // 2
    of = np.where(positive, places // 2, T + places)  # T scores of positives, then 2T + 1 places of negatives
    positives, negatives = np.split(_sums(of, weights, 3 * T + 1), [T])  # (T, R), (2T + 1, R)
    below = negatives.cumsum(0)  # (2T + 1, R)
    wins = np.einsum("tr,tr->r", positives, below[:-1:2] + below[1::2]) / 2
    return wins, positives.sum(0) * below[-1]


def resamples(groups: Sequence[str], n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn by whole groups, as many as there are: blocks (R, N), n rows in all."""
    of_image, names = pd.factorize(np.asarray(groups))
    rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    for rows in _at_once(n, len(of_image)):
        yield rng.multinomial(len(names), even, size=rows)[:, of_image]


def percentiles(samples: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % interval of resampled values; a resample without a value (NaN) is left out."""
    low, high = pd.Series(samples).quantile([0.025, 0.975])
    return float(low), float(high)


def check_resamples(n_bootstrap: int) -> None:
    """Raise ValueError where there are none; called before what takes long."""
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap is {n_bootstrap}; an interval needs resamples, such as 1000.")


def _at_once(n: int, n_images: int) -> Iterator[int]:
    """How many of n resamples come next: so few that memory holds them; a bar over two seconds."""
    most = max(1, min(_RESAMPLES_AT_ONCE, _WEIGHTS_AT_ONCE // max(1, n_images)))
    with tqdm(total=n, desc="bootstrap", leave=False, delay=2) as bar:
        for start in range(0, n, most):
            rows = min(most, n - start)
            yield rows
            bar.update(rows)
