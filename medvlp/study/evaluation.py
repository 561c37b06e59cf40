"""How good a method is on a data set, with 95 % intervals."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_curve
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.features import ImageLoader, image_features, readers
from medvlp.backbone.prompts.hooks import PROMPTED_AT_ONCE
from medvlp.data.datasets import ImageSet
from medvlp.data.errors import check_choice, check_kinds, visible
from medvlp.data.files import short
from medvlp.data.html import Table, escaped, literal_block
from medvlp.methods.base import READING, Method, Reading
from medvlp.study.metrics import (
    METRICS,
    bootstrap,
    check_resamples,
    class_auroc,
    metric_values,
    percentiles,
    resamples,
)

_IMAGES, _FEATURES = 64, 256  # batch sizes


@dataclass(frozen=True)
class Report:
    """What `evaluate` found. Label order is `classnames`.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> report = medvlp.evaluate(medvlp.ZeroShot(clip, data.card), data.val)
        >>> report.confusion().shape, report.per_class().columns.tolist()
        ((2, 2), ['precision', 'recall', 'F1', 'AUROC', 'support'])
        >>> test = medvlp.evaluate(medvlp.ZeroShot(clip, data.card), data.test.subset(range(60)))
        >>> test.operating_point("melanoma", report).index.tolist()
        ['sensitivity', 'specificity', 'PPV', 'NPV']
    """

    method: str  # such as "ZeroShot"
    dataset: str  # such as "pneumonia, test"
    classnames: list[str]
    per_image: pd.DataFrame  # id, true, predicted, correct, confidence, and P(classname) for each class
    metrics: pd.DataFrame  # index metric; columns value, low, high
    groups: list[str]  # of each image: what is resampled
    n_bootstrap: int
    seed: int
    temperature: float  # 1: the probabilities are the method's own

    def table(self) -> pd.DataFrame:
        """Each metric's value and the ends of its 95 % interval; index metric, columns value, low, high."""
        return self.metrics.copy()

    def per_class(self) -> pd.DataFrame:
        """Precision, recall, F1, AUROC against the rest, and the number of images; index classname."""
        labels, probabilities = self.arrays()
        precision, recall, f1, support = precision_recall_fscore_support(
            labels, probabilities.argmax(1), labels=range(len(self.classnames)), zero_division=np.nan
        )
        columns = {"precision": precision, "recall": recall, "F1": f1}
        columns |= {"AUROC": class_auroc(labels, probabilities), "support": support}
        return Table(columns, index=pd.Index(self.classnames, name="classname"))

    def confusion(self) -> pd.DataFrame:
        """Number of images by true class (rows) and predicted class (columns)."""
        labels, probabilities = self.arrays()
        counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(len(self.classnames)))
        table = Table(counts, index=self.classnames, columns=self.classnames)
        return table.rename_axis(index="true", columns="predicted")

    def operating_point(
        self, classname: str, validation: "Report", sensitivity: float | None = None
    ) -> pd.DataFrame:
        """Sensitivity and specificity of one class against the rest, at a threshold chosen elsewhere.

        An image is called positive where P(classname) reaches the threshold. That is chosen on `validation`:
        where sensitivity + specificity is largest there (Youden's index), or, with `sensitivity`, the highest
        threshold that reaches it there.

        Args:
            classname: The class that is looked for, such as the disease.
            validation: The report of validation images of the same method, never of those tested here.
            sensitivity: What is demanded on the validation images, above 0, at most 1.

        Returns:
            Index measure: sensitivity, specificity, PPV and NPV (the shares of the positive and of the
            negative calls that are right, which hang on how common the class is here); columns value, low,
            high (95 % intervals over the report's groups) and threshold.

        Raises:
            ValueError: an unknown class; other classes, another method or temperature, or images of this
                report in `validation`; a class that it lacks or that all its images have; a
                sensitivity out of range.
        """
        check_choice("class", classname, self.classnames)
        other = validation.classnames != self.classnames
        both = [] if other else self.per_image.merge(validation.per_image)["id"].tolist()  # by all columns
        if other or both:
            why = "has other classes" if other else f"has images that are tested here, such as {both[0]!r}"
            raise ValueError(f"the report for validation {why}; a threshold is chosen on validation images.")
        if (validation.method, validation.temperature) != (self.method, self.temperature):
            raise ValueError(
                f"the report for validation is of {validation.method} at temperature "
                f"{validation.temperature:.3g}, this one of {self.method} at {self.temperature:.3g}; a "
                "threshold means the same for the same probabilities only."
            )
        if sensitivity is not None and not 0 < sensitivity <= 1:
            raise ValueError(f"sensitivity is {sensitivity}; it must be above 0, at most 1.")
        c = self.classnames.index(classname)
        labels, p = validation.arrays()
        if not 0 < (labels == c).sum() < len(labels):
            raise ValueError(f"a threshold needs validation images of class {classname!r} and of others.")
        fpr, tpr, thresholds = roc_curve(labels == c, p[:, c], drop_intermediate=False)
        good = tpr - fpr if sensitivity is None else tpr >= sensitivity  # (T,)
        best = 1 + good[1:].argmax()  # the first threshold is infinite
        labels, p = self.arrays()
        true, called = labels == c, p[:, c] >= thresholds[best]  # (N,)
        cells = [true & called, true & ~called, ~true & ~called, ~true & called]
        cells, once = np.stack(cells, axis=1).astype(float), np.ones((1, len(labels)))  # (N, 4), (1, N)
        weights = chain([once], resamples(self.groups, self.n_bootstrap, self.seed))  # a block at a time
        tp, fn, tn, fp = np.concatenate([block @ cells for block in weights]).T  # (1 + R,) each
        shares = {"sensitivity": (tp, fn), "specificity": (tn, fp), "PPV": (tp, fp), "NPV": (tn, fn)}
        rows = {}
        for name, (right, wrong) in shares.items():
            with np.errstate(invalid="ignore"):  # of a resample that has none of them
                share = right / (right + wrong)  # (1 + R,)
            rows[name] = [share[0], *percentiles(share[1:]), thresholds[best]]
        columns = ["value", "low", "high", "threshold"]
        return Table(pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("measure"))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) and probabilities (N, n_cls)."""
        labels = self.per_image["true"].map(self.classnames.index).to_numpy()  # (N,)
        return labels, self.per_image[[f"P({c})" for c in self.classnames]].to_numpy()  # (N, n_cls)

    def _title(self) -> str:
        n, n_groups = len(self.per_image), len(set(self.groups))
        unit = "the images" if n_groups == n else f"their {n_groups} groups"
        at = "" if self.temperature == 1 else f" at temperature {self.temperature:.3g}"
        return (
            f"{self.method}{at} on {self.dataset}: {n} images; 95 % intervals from {self.n_bootstrap} "
            f"bootstrap resamples of {unit}, seed {self.seed}"
        )

    def __repr__(self) -> str:
        """The table under a line that says of what."""
        return f"{self._title()}\n{self.table().round(3).to_string()}"

    def _repr_html_(self) -> str:
        return literal_block(f"<p>{escaped(self._title())}</p>{self.table().round(3).to_html()}")


class Reports(dict[str, Report]):
    """Reports of one method on several data sets, by the names that `evaluate` was given for these."""

    def table(self) -> pd.DataFrame:
        """The tables of all reports side by side: index metric, columns (name, value), (name, low), ..."""
        return pd.concat({name: Table(report.metrics) for name, report in self.items()}, axis=1)

    def _titles(self) -> list[str]:
        return [f"{name}: {report._title()}" for name, report in self.items()]

    def __repr__(self) -> str:
        """The tables under a line each that says of what."""
        return "\n".join([*map(visible, self._titles()), self.table().round(3).to_string()])

    def _repr_html_(self) -> str:
        titles = "".join(f"<p>{escaped(title)}</p>" for title in self._titles())
        return literal_block(titles + self.table().round(3).to_html())


def evaluate(
    method: Method,
    images: ImageSet | Mapping[str, ImageSet],
    n_bootstrap: int = 1000,
    seed: int = 1,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    calibrate_on: ImageSet | None = None,
) -> Report | Reports:
    """Evaluate a method on a data set: `metrics.METRICS`, each with a 95 % percentile bootstrap interval.

    Resamples are of the data set's groups (patients, where the card has a rule, else single images), with
    replacement, not stratified: the interval is about another test set of this size from the same source, not
    about another training seed or hospital.

    Args:
        method: A `Method`. If it `keeps_image_tower`, it is given the cached features of the images.
        images: Images with labels, of the same classes as the method; several sets by names of your own,
            such as {"internal": data.test, "external": other_site.test}, have a report each, in `Reports`.
        n_bootstrap: Number of resamples.
        seed: Of the resampling; the same seed gives the same intervals.
        cache_dir: Of the image features; by default the features' own.
        num_workers: Processes that read images. None: as `image_features` has it; where features are not
            cached none for phantoms, which every process would draw again.
        calibrate_on: Validation images, never those to be tested on: the logits are divided by the one
            temperature under which the negative log-likelihood of these images is least (Guo et al. 2017,
            arXiv 1706.04599). Which class is the most probable, and the order of the others, stay.

    Raises:
        ValueError: an empty data set, a label outside the card, other classes than the method's, logits that
            are not finite, an image to be tested on that `calibrate_on` has, too.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> report = medvlp.evaluate(medvlp.ZeroShot(clip, data.card), data.test.subset(range(60)))
        >>> report.table().index.tolist()
        ['accuracy', 'balanced accuracy', 'macro-F1', 'AUROC', 'kappa', 'ECE']
        >>> low, value, high = report.table().loc["accuracy", ["low", "value", "high"]]
        >>> bool(low < value < high)
        True
        >>> sites = {}
        >>> for site in ("phantom-derm", "phantom-derm-shifted"):
        ...     sites[site] = medvlp.load_dataset(site, test_only=True).test.subset(range(60))
        >>> reports = medvlp.evaluate(medvlp.ZeroShot(clip, data.card), sites)
        >>> reports.table().loc["ECE"].index.tolist()[:3]
        [('phantom-derm', 'value'), ('phantom-derm', 'low'), ('phantom-derm', 'high')]
        >>> len(reports["phantom-derm-shifted"].per_image)
        60
    """
    check_kinds(evaluate, locals())
    check_resamples(n_bootstrap)
    sets = images if isinstance(images, Mapping) else {"": images}
    if not sets:
        raise ValueError('there is no data set to evaluate; give some by name, such as {"test": data.test}.')
    for one in [*sets.values()] + ([] if calibrate_on is None else [calibrate_on]):
        one.check(method.card, type(method).__name__)
    temperature, reading = 1.0, Reading(cache_dir, num_workers=num_workers)
    if calibrate_on is not None:
        fitted_on = set(zip(calibrate_on.ids, calibrate_on.hashes, strict=True))
        both = {i for one in sets.values() for i in zip(one.ids, one.hashes, strict=True)} & fitted_on
        if both:
            why = f"has {len(both)} image(s) that are to be tested on, such as '{short(min(both)[0])}'"
            raise ValueError(f"calibrate_on {why}; a temperature is fitted on validation images.")
        temperature = temperature_of(method, calibrate_on, reading)
    reports = {}
    for name, one in sets.items():
        logits = finite_logits(method, one, reading) / temperature  # (N, n_cls)
        p, who = logits.softmax(dim=1).numpy(), type(method).__name__  # (N, n_cls)
        reports[name] = report_of(who, one, p, n_bootstrap, seed, temperature)
    return Reports(reports) if isinstance(images, Mapping) else reports[""]


def finite_logits(method: Method, images: ImageSet, reading: Reading) -> Tensor:
    """`predict_logits` (N, n_cls) in float64; ValueError where one is not finite."""
    logits = predict_logits(method, images, reading)
    bad = (~torch.isfinite(logits)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{type(method).__name__} gave logits that are not finite for {len(bad)} of {len(logits)} "
            f"images, first '{short(images.ids[bad[0]])}'; look for NaN in its weights."
        )
    return logits.double()


def temperature_of(method: Method, images: ImageSet, reading: Reading) -> float:
    """The T > 0 for which the cross-entropy of the method's logits (N, n_cls) / T is least on images."""
    logits = finite_logits(method, images, reading)
    ends = (-5, 5)  # of log T: where all is right, T would fall to 0
    best = minimize_scalar(lambda t: F.cross_entropy(logits / math.exp(t), images.labels).item(), bounds=ends)
    return math.exp(best.x)


def report_of(
    method: str, images: ImageSet, probabilities: np.ndarray, n_bootstrap: int, seed: int, temperature: float
) -> Report:
    """The report of a method's probabilities (N, n_cls) of images."""
    labels, names = images.labels.cpu().numpy(), images.card.classnames  # (N,)
    predicted = probabilities.argmax(1)  # (N,)
    per_image = {
        "id": images.ids,
        "true": [names[label] for label in labels],
        "predicted": [names[label] for label in predicted],
        "correct": predicted == labels,
        "confidence": probabilities.max(1),
        **{f"P({name})": probabilities[:, c] for c, name in enumerate(names)},
    }
    samples = bootstrap(labels, probabilities, images.groups, n_bootstrap, seed)  # (n_bootstrap, 6)
    values = metric_values(labels, probabilities)
    rows = {name: [values[name], *percentiles(samples[name])] for name in METRICS}
    metrics = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
    return Report(
        method=method,
        dataset=f"{images.card.name}, {images.split}",
        classnames=list(names),
        per_image=Table(per_image),
        metrics=metrics.rename_axis("metric"),
        groups=images.groups,
        n_bootstrap=n_bootstrap,
        seed=seed,
        temperature=temperature,
    )


def loss_and_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Cross-entropy and the six metrics of logits (N, n_cls) and labels (N,), computed in float64.

    This is what an epoch of `fit`, or a run of an ablation, is chosen by.
    """
    logits = logits.double()
    loss = F.cross_entropy(logits, labels).item()
    return {"loss": loss} | metric_values(labels.numpy(), logits.softmax(dim=1).numpy())


def predict_logits(
    method: Method, images: ImageSet, reading: Reading = READING, features: Tensor | None = None
) -> Tensor:
    """Logits of every image, (N, n_cls) float on the CPU, in evaluation mode; a bar over two seconds.

    Where the method `keeps_image_tower` the images' features (N, D) are `features`, or those in the cache.
    """
    device, most = method.clip.device, len(images)
    if method.conditional:  # each image has texts of its own: few at once, so that the bar moves
        most = max(1, PROMPTED_AT_ONCE // len(method.card.classnames))
    with evaluating(method):
        if method.keeps_image_tower:
            if features is None:
                features = image_features(method.clip, images, **vars(reading)).features  # (N, D)
            batches, forward = features.split(min(_FEATURES, most)), method.logits_from_features
        else:
            size = min(_IMAGES, most)
            workers = readers(images, size, reading.num_workers)
            batches, forward = ImageLoader.in_order(method.clip, images, size, workers), method.forward
        bar = tqdm(batches, "evaluate", unit="batch", leave=False, delay=2, disable=not reading.progress)
        inputs = (b if isinstance(b, Tensor) else b[0] for b in bar)  # a loader also gives labels
        return torch.cat([forward(x.to(device)).float().cpu() for x in inputs])


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; the method's own mode again after it.

    Text features that no image changes are computed once, when they are first asked for, and forgotten after
    the block: in it the weights stay as they are.
    """
    was_training, of_texts = method.training, ("class_features", "symptom_features")
    outermost = not method.conditional and not vars(method).keys() & set(of_texts)
    method.eval()
    try:
        if outermost:
            vars(method).update({name: cache(getattr(method, name)) for name in of_texts})
        with torch.no_grad():
            yield
    finally:
        for name in of_texts if outermost else ():
            vars(method).pop(name, None)
        method.train(was_training)
