"""Hidden checks of A2: zero-shot probabilities, an ensemble of templates, a bootstrap of patients, ECE."""

import numpy as np
from scipy import special, stats
from tasks import Assignment, Property, Task

DIGITS = 2


def features(rng, *shape: int) -> list:
    """Draw features whose lengths differ."""
    return (rng.normal(size=shape) * rng.uniform(0.2, 4, size=(*shape[:-1], 1))).round(DIGITS).tolist()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def images_and_texts(rng) -> list[list]:
    """Draw features of images and of classes' texts, and a scale."""
    return [
        [features(rng, n, d), features(rng, c, d), s]
        for n, c, d, s in ((3, 2, 4, 5.0), (9, 4, 6, 14.3), (5, 5, 8, 1.0))
    ]


def probabilities_reference(image_features, text_features, scale):
    return special.softmax(scale * unit(image_features) @ unit(text_features).T, axis=1)


def same_text(rng) -> list[list]:
    return [[features(rng, 6, 5), features(rng, 1, 5) * 4, 10.0]]


def large_scale(rng) -> list[list]:
    return [[*images_and_texts(rng)[1][:2], 5000.0]]


def ensembles(rng) -> list[list]:
    """Draw features of the texts of classes, one a template."""
    return [[features(rng, *shape)] for shape in ((2, 3, 4), (3, 5, 8), (4, 4, 4))]


def ensemble_reference(text_features):
    return unit(unit(text_features).mean(axis=1))


def one_longer(rng) -> list[list]:
    texts = np.array(features(rng, 2, 3, 5))
    longer = texts.copy()
    longer[:, 0] *= 10
    return [[texts.tolist()], [longer.tolist()]]


def patients(rng, n: int, rows: int) -> list:
    """Draw right and wrong answers of patients who differ, in mixed order, and which patients are drawn."""
    patient = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 9, size=n)))
    right = rng.random(len(patient)) < rng.choice([0.1, 0.6, 1.0], size=n)[patient]
    return [right.astype(int).tolist(), patient.tolist(), rng.integers(n, size=(rows, n)).tolist()]


def interval_reference(right, patient, draws):
    of_patient = [right[patient == p] for p in range(patient.max() + 1)]
    accuracies = [np.concatenate([of_patient[p] for p in row]).mean() for row in draws]
    low, high = np.quantile(accuracies, [0.025, 0.975])
    return float(low), float(high)


def images_twice(rng) -> list[list]:
    right, patient, draws = patients(rng, 8, 60)
    return [[right, patient, draws], [right * 2, patient * 2, draws]]


def simulated(rng) -> list[list]:
    """Draw data sets of 20 patients with 6 images each, nearly all right or nearly all wrong."""
    patient = np.repeat(np.arange(20), 6)
    out = []
    for _ in range(40):
        share = np.where(rng.random(20) < 0.7, 0.95, 0.05)[patient]
        right = (rng.random(120) < share).astype(int)
        out.append([right.tolist(), patient.tolist(), rng.integers(20, size=(100, 20)).tolist()])
    return out


def covers(results) -> bool:
    truth = 0.7 * 0.95 + 0.3 * 0.05
    return np.mean([low <= truth <= high for low, high in results]) >= 0.75


def predictions(rng) -> list[list]:
    """Draw probabilities, labels and a number of bins; no confidence lies on a bin's edge.

    Half of the images are too sure and half not sure enough, so that errors do not all have one sign. In the
    last set some are certain: their bin is the last, where others are not sure enough.
    """
    out = []
    for n, c, bins in ((8, 2, 3), (40, 3, 7), (300, 4, 11)):
        logits = rng.normal(size=(n, c))
        labels = [int(rng.choice(c, p=row)) for row in special.softmax(logits, axis=1)]
        sureness = np.where(np.arange(n) % 2, 3, 0.3)[:, None]
        sure = special.softmax(sureness * logits, axis=1).clip(0.01)
        out.append([(sure / sure.sum(axis=1, keepdims=True)).round(4).tolist(), labels, bins])
    sure = np.append(rng.uniform(0.85, 0.95, 8).round(4), [1.0] * 4)
    out.append([np.stack([sure, 1 - sure], axis=1).round(4).tolist(), [0] * 10 + [1] * 2, 5])
    return out


def ece_reference(probabilities, labels, bins):
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    sums = stats.binned_statistic(confidence, gap, "sum", bins=bins, range=(0, 1)).statistic
    return float(np.abs(sums).sum() / len(labels))


ASSIGNMENT = Assignment(
    name="A2",
    kind="numpy",
    allowed=["numpy", "math"],
    tasks=[
        Task(
            "zero_shot",
            4,
            lambda rng: images_and_texts(rng) + large_scale(rng),
            probabilities_reference,
            properties=[
                Property(
                    "each image's probabilities add up to 1.",
                    lambda rng: images_and_texts(rng)[1:2],
                    lambda r: np.shape(r[0]) == (9, 4) and np.allclose(np.sum(r[0], axis=1), 1),
                ),
                Property(
                    "texts that are all the same, which tell nothing, give every one of C classes 1 / C.",
                    same_text,
                    lambda r: np.allclose(r[0], 1 / 4),
                ),
                Property(
                    "a large scale gives numbers, too.",
                    large_scale,
                    lambda r: bool(np.all(np.isfinite(r[0]))),
                ),
            ],
        ),
        Task(
            "ensemble",
            3,
            ensembles,
            ensemble_reference,
            properties=[
                Property(
                    "each class's feature is of length one.",
                    lambda rng: ensembles(rng)[1:2],
                    lambda r: np.allclose(np.linalg.norm(r[0], axis=1), 1),
                ),
                Property(
                    "a text whose feature is ten times longer counts no more.",
                    one_longer,
                    lambda r: np.allclose(r[0], r[1]),
                ),
            ],
        ),
        Task(
            "patient_interval",
            4,
            lambda rng: [patients(rng, 5, 12), patients(rng, 12, 60), patients(rng, 30, 200)],
            interval_reference,
            properties=[
                Property(
                    "every image twice is no new evidence: the interval stays as it is.",
                    images_twice,
                    lambda r: np.allclose(r[0], r[1]),
                ),
                Property(
                    "in simulations most intervals hold the truth (75 % at least, as patients are few).",
                    simulated,
                    covers,
                ),
            ],
        ),
        Task(
            "calibration_error",
            3,
            predictions,
            ece_reference,
            properties=[
                Property(
                    "who always says 1 / C, with classes of equal size, is calibrated.",
                    lambda rng: [[[[0.25] * 4] * 12, rng.permutation([0, 1, 2, 3] * 3).tolist(), 7]],
                    lambda r: np.isclose(r[0], 0),
                ),
                Property(
                    "who is sure and always wrong has an error of 1.",
                    lambda rng: [[[[1.0, 0.0]] * 8, [1] * 8, 7]],
                    lambda r: np.isclose(r[0], 1),
                ),
            ],
        ),
    ],
)
