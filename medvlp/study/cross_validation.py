"""What a paper asks of a method on a data set: cross-validation, and a comparison in pairs with another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import check_kinds, check_same_classes
from medvlp.data.files import short
from medvlp.data.html import Table
from medvlp.data.splits import group_folds, split
from medvlp.methods.base import Method, Reading
from medvlp.study.ablation.statistics import Predictions, mcnemar_of, p_of_zero, t_interval
from medvlp.study.evaluation import Report, finite_logits, report_of, temperature_of
from medvlp.study.metrics import METRICS, RANGES, bootstrap_all, check_resamples, metric_values, percentiles
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit


@dataclass(frozen=True, repr=False)
class CrossValidation(Report):
    """The report of all images, each as the method said that had not seen it; `folds` has each fold's values.

    Index fold, from 1; columns train, val, test (images), temperature, and the metrics.
    """

    folds: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """As of a report, and over the folds: mean, and the ends of the 95 % `t_interval` of the mean.

        The folds share training images, so they are no independent runs and this interval may be too short
        (Bengio and Grandvalet 2004).
        """
        rows = {
            name: [of_folds.mean(), *t_interval(of_folds.dropna(), *RANGES[name])]
            for name, of_folds in self.folds[list(METRICS)].items()
        }
        columns = ["folds mean", "folds low", "folds high"]
        return self.metrics.join(Table.from_dict(rows, orient="index", columns=columns))


def cross_validate(
    images: ImageSet,
    make: Callable[[], Method],
    config: TrainConfig | None = None,
    folds: int = 5,
    val_fraction: float = 0.2,
    n_bootstrap: int = 1000,
    seed: int = 1,
    calibrate: bool = False,
    checkpoint_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> CrossValidation:
    """Train and test on every image: each fold is said by a method that was trained on the other folds.

    Folds keep groups (patients) whole and have the classes' shares as far as groups allow. Of the other
    folds' images a part, likewise, is for validation. Features of images are computed once for all folds, and
    kept: what was stopped goes on where it was.

    Args:
        images: All that is to be cross-validated: `data.train`, with a test set that is left alone, or every
            image of a set without splits of its own, `load_dataset(..., test_only=True).test`.
        make: Builds the method anew, such as `lambda: medvlp.ViP(clip, data.card)`.
        config: The recipe; by default the method's own.
        folds: How many, 2 or more.
        val_fraction: Part of the training folds that is for validation.
        n_bootstrap: Number of resamples of the images, or groups, for the intervals.
        seed: Of folds, validation parts and resamples. A method and `config` have seeds of their own.
        calibrate: Divide each fold's logits by its validation part's temperature; see `evaluate`.
        checkpoint_dir: A folder for a checkpoint a fold, so that a second start goes on; see `fit`.
        cache_dir: Of the image features; by default the features' own.
        progress: Show bars.

    Returns:
        A report of all images, in their order, whose `folds` are the folds' own values. The pooled AUROC and
        ECE mix scores of several methods; where they are far from the folds' mean, the folds differ in scale.

    Raises:
        ValueError: fewer than 2 folds, a class with fewer groups than folds, a card whose group_pattern finds
            nothing in these images.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> images = medvlp.load_dataset("phantom-derm", num_shots=20).train
        >>> probe = lambda: medvlp.LinearProbe(clip, images.card)
        >>> report = medvlp.cross_validate(images, probe, folds=3, n_bootstrap=100, progress=False)
        >>> len(report.per_image), report.folds.index.tolist()
        (40, [1, 2, 3])
    """
    check_kinds(cross_validate, locals())
    check_resamples(n_bootstrap)
    labels, groups, card = images.labels.numpy(), np.asarray(images.groups), images.card  # (N,), (N,)
    images.check(card, "cross_validate")
    if images.groups == images.ids and getattr(card.source, "group_pattern", None):
        why = "its group_pattern finds nothing, so a patient's images would be in several folds"
        raise ValueError(f"card {card.name!r}: {why}. Mend it, or leave it out.")
    parts = tqdm(group_folds(images, folds, seed), "folds", disable=not progress)
    probabilities, rows = np.empty((len(images), len(card.classnames))), []
    reading = Reading(cache_dir, progress)
    for number, (others, tested) in enumerate(parts, start=1):
        kept, held = split(labels[others], groups[others], val_fraction, seed, card.classnames)
        places = {"train": others[kept], "val": others[held], "test": tested}
        train, val, test = (replace(images.subset(which), split=name) for name, which in places.items())
        method = make()
        test.check(method.card, type(method).__name__)
        checkpoint = None if checkpoint_dir is None else Path(checkpoint_dir, f"fold-{number}.safetensors")
        if method.fits_before_training or any(p.requires_grad for p in method.parameters()):
            how = {"checkpoint": checkpoint, "cache_dir": cache_dir, "progress": progress}
            if fit(method, train, val, config, **how).attrs.get("interrupted"):
                raise KeyboardInterrupt
        temperature = temperature_of(method, val, reading) if calibrate else 1.0
        logits = finite_logits(method, test, reading) / temperature  # (n, n_cls)
        probabilities[tested] = logits.softmax(dim=1)
        row = {"fold": number} | {name: len(of_part) for name, of_part in places.items()}
        rows.append(row | {"temperature": temperature} | metric_values(labels[tested], probabilities[tested]))
    pooled = report_of(type(method).__name__, images, probabilities, n_bootstrap, seed, 1.0)
    facts = vars(pooled) | {"dataset": f"{card.name}, {folds} folds"}
    return CrossValidation(**facts, folds=Table(rows).set_index("fold"))


def compare(report: Report, baseline: Report, n_bootstrap: int = 2000, seed: int = 1) -> pd.DataFrame:
    """Two methods on the same images, in pairs: both are resampled together.

    Args:
        report: What `evaluate` or `cross_validate` gave.
        baseline: Likewise, of the same images in the same order.
        n_bootstrap: Number of resamples, of groups where the images have any.
        seed: Of the resampling.

    Returns:
        A row a metric, with the columns value, baseline, difference (the first less the second), low and high
        (95 % percentile interval of the difference) and p, two-sided, of the same resamples and for this one
        metric: `medvlp.holm` corrects several. For the accuracy also won and lost, the images that only the
        first, or only the baseline, names right, and p McNemar; it is missing where images share a group,
        since McNemar's test takes images as independent.

    Raises:
        ValueError: other images, classes or groups, or another order.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> images, reports = data.test.subset(range(60)), []
        >>> for knowledge in ("symptoms", "classnames"):
        ...     reports.append(medvlp.evaluate(medvlp.ZeroShot(clip, data.card, knowledge), images))
        >>> table = medvlp.compare(*reports)
        >>> table.columns.tolist()
        ['value', 'baseline', 'difference', 'low', 'high', 'p', 'won', 'lost', 'p McNemar']
    """
    check_kinds(compare, locals())
    check_resamples(n_bootstrap)
    _check_same_images(report, baseline)
    numbers = pd.factorize(np.asarray(report.groups))[0]  # (N,)
    ours, theirs = (Predictions(labels, numbers, p) for labels, p in (report.arrays(), baseline.arrays()))
    drawn = bootstrap_all(ours.labels, [ours.probabilities, theirs.probabilities], numbers, n_bootstrap, seed)
    samples = drawn[0] - drawn[1]  # (n_bootstrap, 6)
    table = Table({"value": report.metrics["value"], "baseline": baseline.metrics["value"]})
    table["difference"] = table["value"] - table["baseline"]
    table[["low", "high"]] = [percentiles(samples[name]) for name in table.index]
    table["p"] = samples.apply(p_of_zero)
    pairs = Table([mcnemar_of(ours, theirs)], index=["accuracy"])
    return table.join(pairs.astype({"won": "Int64", "lost": "Int64"}))


def _check_same_images(report: Report, baseline: Report) -> None:
    """Raise ValueError, which names an image, unless both reports are of the same ones in the same order."""
    check_same_classes("the first report", report.classnames, "the other", baseline.classnames)
    ours, theirs = (
        r.per_image[["id", "true"]].assign(group=r.groups).reset_index(drop=True) for r in (report, baseline)
    )
    if ours.equals(theirs):
        return
    first = pd.concat([ours, theirs]).drop_duplicates(keep=False)["id"]
    why = "are in one of the reports only, or have another label or group in the other"
    if first.empty:
        first, why = ours["id"][ours["id"] != theirs["id"]], "stand in another place in the other report"
    which = f"{first.nunique()} {why}, such as '{short(first.iloc[0])}'"
    raise ValueError(f"compare needs the same images in the same order: {which}.")
