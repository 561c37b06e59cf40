"""Metrics of a classifier and their bootstrap, as plain functions of labels and probabilities.

Point values come from scikit-learn. The bootstrap needs a thousand sets of them, and computes the same
definitions for many resamples at once in NumPy; tests hold the two to each other.
A metric that is not defined for a sample (AUROC of a class that it lacks) leaves that class out, or is NaN.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, recall_score, roc_auc_score
from tqdm.auto import tqdm

METRICS = ("accuracy", "balanced accuracy", "macro-F1", "AUROC", "kappa", "ECE")
ECE_BINS = 15
_RESAMPLES_AT_ONCE = 100


def metric_values(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The six metrics of labels (N,) and probabilities (N, n_cls).

    accuracy: share of images whose most probable class is right.
    balanced accuracy: mean recall of the classes that have images.
    macro-F1: mean F1 of the classes that are true or predicted for at least one image.
    AUROC: two classes, of the second one; more, the mean over classes of one against the rest.
    kappa: Cohen's, unweighted.
    ECE: expected calibration error, see `expected_calibration_error`.
    """
    predicted = probabilities.argmax(1)  # (N,)
    return {
        "accuracy": accuracy_score(labels, predicted),
        "balanced accuracy": recall_score(labels, predicted, labels=np.unique(labels), average="macro"),
        "macro-F1": f1_score(labels, predicted, average="macro"),
        "AUROC": _auroc(labels, probabilities),
        "kappa": _kappa(labels, predicted),
        "ECE": expected_calibration_error(labels, probabilities),
    }


def class_auroc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest, (n_cls,); NaN where a class has no image or all of them."""
    values = np.full(probabilities.shape[1], np.nan)
    for c in range(probabilities.shape[1]):
        if 0 < (labels == c).sum() < len(labels):
            values[c] = roc_auc_score(labels == c, probabilities[:, c])
    return values


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy, in equal-width bins of the confidence.

        ECE = sum_k (n_k / N) |accuracy_k - confidence_k|

    The confidence is the predicted class's probability (Guo et al. 2017). It is never below zero, so small
    samples, and resamples of them, overstate it.
    """
    confidence = probabilities.max(1)  # (N,)
    gap = (probabilities.argmax(1) == labels) - confidence  # (N,)
    return float(np.abs(np.bincount(_bin(confidence, bins), gap, minlength=bins)).sum() / len(labels))


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
    rng = np.random.default_rng(seed)
    of_image, names = pd.factorize(
        np.arange(len(labels)) if groups is None else np.asarray(groups)
    )  # (N,), (G,)
    size = len(names)
    samples = []
    with tqdm(total=n, desc="bootstrap", leave=False, delay=2) as bar:
        for start in range(0, n, _RESAMPLES_AT_ONCE):
            rows = min(_RESAMPLES_AT_ONCE, n - start)
            drawn = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size  # (R, G)
            counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(
                rows, size
            )  # (R, G), times drawn
            weights = counts[:, of_image].astype(float)  # (R, N)
            samples.append(weighted_metrics(labels, probabilities, weights, metrics))
            bar.update(rows)
    return pd.concat(samples, ignore_index=True)


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Metrics under each row of weights: (N,), (N, n_cls), (R, N) -> (R, len(metrics)), columns `metrics`."""
    n_cls = probabilities.shape[1]
    predicted = probabilities.argmax(1)  # (N,)
    is_true, is_given = np.eye(n_cls)[labels], np.eye(n_cls)[predicted]  # (N, n_cls)
    true, given, hits = weights @ is_true, weights @ is_given, weights @ (is_true * is_given)  # (R, n_cls)
    total = weights.sum(1)  # (R,)

    def auroc() -> np.ndarray:
        by_image = np.ascontiguousarray(weights.T)  # (N, R), many times faster to sort and sum
        classes = [1] if n_cls == 2 else range(n_cls)
        return np.nanmean(
            [_weighted_auroc(labels == c, probabilities[:, c], by_image) for c in classes], axis=0
        )

    def kappa() -> np.ndarray:
        observed, expected = hits.sum(1) / total, (true * given).sum(1) / total**2
        return (observed - expected) / (1 - expected)

    def ece() -> np.ndarray:
        confidence = probabilities.max(1)  # (N,)
        gap = (predicted == labels) - confidence  # (N,)
        gaps = np.eye(ECE_BINS)[_bin(confidence, ECE_BINS)] * gap[:, None]  # (N, bins)
        return np.abs(weights @ gaps).sum(1) / total

    how = {
        "accuracy": lambda: hits.sum(1) / total,
        "balanced accuracy": lambda: np.nanmean(hits / true, axis=1),
        "macro-F1": lambda: np.nanmean(2 * hits / (true + given), axis=1),
        "AUROC": auroc,
        "kappa": kappa,
        "ECE": ece,
    }
    with np.errstate(invalid="ignore"), warnings.catch_warnings():  # 0 / 0 is NaN, and a mean leaves NaN out
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return pd.DataFrame({name: how[name]() for name in metrics})


def _weighted_auroc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a positive scores above a negative, ties half: (N,), (N,), (N, R) -> (R,)."""
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(score[negatives])]  # (N-,), by score
    below = np.concatenate([np.zeros((1, weights.shape[1])), weights[negatives].cumsum(0)])  # (N- + 1, R)
    fewer = np.searchsorted(score[negatives], score[positive], "left")  # (N+,), negatives below each positive
    more = np.searchsorted(score[negatives], score[positive], "right")  # (N+,), ties included
    of_positives = weights[positive]  # (N+, R)
    wins = np.einsum("pr,pr->r", of_positives, below[fewer] + below[more]) / 2
    return wins / (of_positives.sum(0) * below[-1])


def _auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    by_class = class_auroc(labels, probabilities)
    if len(by_class) == 2:
        return float(by_class[1])
    return float(np.nanmean(by_class)) if np.isfinite(by_class).any() else float("nan")


def _kappa(labels: np.ndarray, predicted: np.ndarray) -> float:
    if len(np.union1d(labels, predicted)) == 1:
        return float("nan")  # no disagreement to expect
    return float(cohen_kappa_score(labels, predicted))


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((confidence * bins).astype(int), bins - 1)
