"""Metrics of a classifier and their bootstrap, as plain functions of labels and probabilities.

One set of definitions serves a data set and many resamples of it at once; tests hold it to scikit-learn's.
A metric that is not defined for a sample (AUROC of a class that it lacks) leaves that class out, or is NaN.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

METRICS = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "kappa", "ECE")
OF_CLASSES = ("base accuracy", "new accuracy", "harmonic mean")  # what base_to_new adds to the metrics
RANGES = dict.fromkeys(METRICS + OF_CLASSES, (0.0, 1.0)) | {"kappa": (-1.0, 1.0)}  # of their values
ECE_BINS = 15
_RESAMPLES_AT_ONCE = 100


def metric_values(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The six metrics of labels (N,) and probabilities (N, n_cls), each image counted once."""
    return weighted_metrics(labels, probabilities, np.ones((1, len(labels)))).iloc[0].to_dict()


def class_auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest, (n_cls,); NaN where a class has no image or all of them."""
    once = np.ones((len(labels), 1))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.array([_weighted_auroc(labels == c, p, once)[0] for c, p in enumerate(probabilities.T)])


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
    samples = [[] for _ in probabilities]  # for each classifier its metrics, chunk after chunk
    with tqdm(total=n, desc="bootstrap", leave=False, delay=2) as bar:
        for start in range(0, n, _RESAMPLES_AT_ONCE):
            rows = min(_RESAMPLES_AT_ONCE, n - start)
            drawn = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size  # (R, G)
            counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)  # (R, G)
            weights = counts[:, of_image].astype(float)  # (R, N)
            for of_one, p in zip(samples, probabilities, strict=True):
                of_one.append(_weighted(labels, p, weights, metrics))
            bar.update(rows)
    return [
        pd.DataFrame({name: np.concatenate([chunk[name] for chunk in of_one]) for name in metrics})
        for of_one in samples
    ]


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Metrics under each row of weights: (N,), (N, n_cls), (R, N) -> (R, len(metrics)), columns `metrics`.

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
    return pd.DataFrame(_weighted(labels, probabilities, weights, metrics))


def _weighted(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """The columns of `weighted_metrics`."""
    n_cls = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)  # (N,)
    is_true, is_predicted = np.eye(n_cls)[labels], np.eye(n_cls)[predicted]  # (N, n_cls)
    # images of each class, images predicted to be of it, and both at once: (R, n_cls)
    counted = weights @ np.hstack([is_true, is_predicted, is_true * is_predicted])  # (R, 3 n_cls)
    n_true, n_predicted, hits = np.split(counted, 3, axis=1)
    total = n_true.sum(1)  # (R,)

    def auroc() -> np.ndarray:
        by_image = np.ascontiguousarray(weights.T)  # (N, R), many times faster to sort and sum
        classes = [1] if n_cls == 2 else range(n_cls)
        by_class = [_weighted_auroc(labels == c, probabilities[:, c], by_image) for c in classes]
        return np.nanmean(by_class, axis=0)

    def kappa() -> np.ndarray:
        observed, expected = hits.sum(1) / total, (n_true * n_predicted).sum(1) / total**2
        return (observed - expected) / (1 - expected)

    def ece() -> np.ndarray:
        bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)  # (N,)
        gap = (predicted == labels) - confidence  # (N,)
        return np.abs(weights @ (np.eye(ECE_BINS)[bins] * gap[:, None])).sum(1) / total

    formulas = {
        "accuracy": lambda: hits.sum(1) / total,
        "balanced accuracy": lambda: np.nanmean(hits / n_true, axis=1),
        "macro-F1": lambda: np.nanmean(2 * hits / (n_true + n_predicted), axis=1),
        "AUROC": auroc,
        "kappa": kappa,
        "ECE": ece,
    }
    with np.errstate(invalid="ignore"), warnings.catch_warnings():  # 0 / 0 is NaN, and a mean leaves NaN out
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return {name: formulas[name]() for name in metrics}


def _weighted_auroc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive scores above a negative, ties half: (N,), (N,), (N, R) -> (R,)."""
    won, pairs = won_pairs(positive, score, weights)
    return won / pairs


def won_pairs(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose positive scores above the negative, ties half, and all pairs, (R,) each; weights (N, R)."""
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(score[negatives])]  # (N-,), by score
    below = np.concatenate([np.zeros((1, weights.shape[1])), weights[negatives].cumsum(0)])  # (N- + 1, R)
    fewer = np.searchsorted(score[negatives], score[positive], "left")  # (N+,), negatives below each positive
    more = np.searchsorted(score[negatives], score[positive], "right")  # (N+,), ties included
    of_positives = weights[positive]  # (N+, R)
    wins = np.einsum("pr,pr->r", of_positives, below[fewer] + below[more]) / 2
    return wins, of_positives.sum(0) * below[-1]
