"""The failure gallery: which images a method gets wrong, how surely, and what argued for it.

`failures` finds them, `right_and_wrong` compares two methods, and `medvlp.show.gallery.doubtful` finds images
that are doubtful in other ways; all give a `Failures`.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.errors import check_choice, check_kinds, visible
from medvlp.data.html import Table, escaped, literal_block
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.methods.base import Method
from medvlp.show.figures.basic import show_images
from medvlp.show.gallery.page import write_page
from medvlp.show.gallery.reasons import (
    NEIGHBOURS,
    SYMPTOMS,
    misled_by,
    nearest_images,
    neighbour_table,
    symptom_evidence,
)
from medvlp.study.evaluation import predict_logits


@dataclass(frozen=True, eq=False, repr=False)
class Failures:
    """Images worth a look, the most confident first, and what is known of each.

    Attributes:
        title: what these are.
        images: the whole set that they are from.
        table: one row an image:
            image: its place in `images`; true, predicted: class names; correct.
            confidence: probability of the predicted class; p_true: that of the true class.
            margin: confidence less the largest other probability.
            note: why the image is here, where that is more than being wrong.
            misled_by, evidence, best_rule: on phantoms only, see `medvlp.show.gallery.reasons.misled_by`.
        symptoms: what argued for the true and for the predicted class, see
            `medvlp.show.gallery.reasons.symptom_evidence`; empty for a method without symptom scores.
        neighbours: the nearest training images: image, rank, neighbour (place in `train`), classname, cosine.
        train: the training images, or None.
        words: what true and predicted are called where these are shown.

    Example:
        >>> import medvlp
        >>> from medvlp.show import failures
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> wrong = failures(zero, data.test.subset(range(40)))
        >>> list(wrong.pairs())
        ['true', 'predicted', 'images', 'confidence']
    """

    title: str
    images: ImageSet
    table: pd.DataFrame
    symptoms: pd.DataFrame
    neighbours: pd.DataFrame
    train: ImageSet | None = None
    words: tuple[str, str] = ("true", "predicted")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        """The title and the first rows."""
        return visible(f"{self.title}\n{self.table.head(10).round(3).to_string(index=False)}")

    def _repr_html_(self) -> str:
        rows = self.table.head(10).to_html(index=False, float_format="{:.3f}".format, na_rep="")
        more = f"<p>and {len(self) - 10} more</p>" if len(self) > 10 else ""
        return literal_block(f"<p>{escaped(self.title)}</p>{rows}{more}")

    def where(self, mask: ArrayLike, what: str = "") -> "Failures":
        """The rows of `table` where `mask` (n,) is true; `what` is added to the title."""
        table = self.table[np.asarray(mask, dtype=bool)].reset_index(drop=True)
        symptoms, neighbours = (t[t["image"].isin(table["image"])] for t in (self.symptoms, self.neighbours))
        title = f"{self.title}; {what}: {len(table)}" if what else self.title
        return replace(self, title=title, table=table, symptoms=symptoms, neighbours=neighbours)

    def pairs(self) -> pd.DataFrame:
        """How many images of each true class got each prediction, the most frequent pair first.

        Columns true, predicted, images, confidence (their mean).
        """
        by_pair = self.table.groupby(["true", "predicted"], sort=False)["confidence"].agg(["size", "mean"])
        columns = ["true", "predicted", "images", "confidence"]
        table = Table(by_pair.reset_index()).set_axis(columns, axis=1)
        return table.sort_values(["images", "confidence"], ascending=False, ignore_index=True)

    def pair(self, true: str, predicted: str) -> "Failures":
        """The images of one true and one predicted class."""
        classnames = self.images.card.classnames
        for name in (true, predicted):
            check_choice("class", name, classnames, f"card {self.images.card.name!r}")
        mask = (self.table["true"] == true) & (self.table["predicted"] == predicted)
        return self.where(mask, f"{true} taken for {predicted}")

    def figure(self, n: int = 12, columns: int = 4) -> Figure:
        """The first `n` images in a grid: true and predicted class, confidence, and what argued for it.

        That is the attribute that misled, on phantoms; else the symptom of the predicted class that argued
        most; else nothing. ValueError where there is no image.
        """
        rows = self.table.head(n)
        if rows.empty:
            raise ValueError(f"there is no image to show ({self.title}).")
        images = [self.images.picture(i) for i in rows["image"]]
        fig = show_images(images, [""] * len(rows), n=len(rows), columns=columns)
        fig.set_size_inches(fig.get_size_inches() * (1.25, 1.4))
        for ax, (_, row) in zip(fig.axes, rows.iterrows(), strict=False):
            text = "\n".join(textwrap.fill(line, 30) for line in self._caption(row))
            ax.set_title(text, fontsize=8, parse_math=False)  # class names and symptoms are no mathematics
        return fig

    def _caption(self, row: pd.Series) -> list[str]:
        lines = [f"{row['true']}, {self.words[1]} {row['predicted']} {row['confidence']:.2f}"]
        mine = (self.symptoms["image"] == row["image"]) & (self.symptoms["classname"] == row["predicted"])
        argued = self.symptoms[mine & (self.symptoms["argued"] > 0)]  # the strongest first
        if row.get("misled_by"):
            lines.append(f"misled by: {row['misled_by']}")
        elif len(argued):
            lines.append(f"for it: {argued['symptom'].iloc[0]}")
        return lines

    def to_html(self, path: str | Path, *others: "Failures", show_ids: bool | None = None) -> Path:
        """Write these, and `others` under them, as one page: see `medvlp.show.gallery.page.write_page`."""
        return write_page(path, [self, *others], show_ids)


def failures(
    method: Method | Tensor | np.ndarray,
    images: ImageSet,
    train: ImageSet | None = None,
    clip: Clip | None = None,
    n_neighbours: int = 3,
) -> Failures:
    """The images that a method gets wrong, the most confident first.

    Args:
        method: a method, or the logits (N, n_cls) that one gave.
        images: images with labels, of the method's classes.
        train: training images, of which the nearest are found by the cosine of the frozen image features.
        clip: gives these features where `method` is logits; else the method's own.
        n_neighbours: training images for each failure.

    Raises:
        ValueError: no image, other classes than the method's, a label outside the card, logits of another
            shape or not finite, training images with neither method nor clip.

    Example:
        >>> import medvlp
        >>> from medvlp.show import failures
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> wrong = failures(zero, data.test.subset(range(40)), data.train)
        >>> sorted(wrong.neighbours["rank"].unique().tolist())
        [1, 2, 3]
    """
    check_kinds(failures, locals())
    logits = _logits(method, images)  # (N, n_cls)
    wrong = np.flatnonzero(logits.argmax(dim=1).numpy() != images.labels.numpy())
    title = f"{name_of(method)} on {images.card.name}, {images.split}: {len(wrong)} of {len(images)} wrong"
    return describe(title, images, wrong, method, logits, train, clip, n_neighbours=n_neighbours)


def right_and_wrong(
    right: Method | Tensor | np.ndarray,
    wrong: Method | Tensor | np.ndarray,
    images: ImageSet,
    train: ImageSet | None = None,
    clip: Clip | None = None,
    names: tuple[str, str] | None = None,
) -> Failures:
    """The images that the method `right` gets right and the method `wrong` wrong; see `failures`.

    Predictions and symptoms are those of `wrong`; the note says how sure `right` was. `names` are what the
    two are called, by default by their classes.

    Example:
        >>> import medvlp
        >>> from medvlp.show import right_and_wrong
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> names = medvlp.ZeroShot(zero.clip, data.card, knowledge="classnames")
        >>> better = right_and_wrong(zero, names, data.test.subset(range(40)))
        >>> better.title
        'ZeroShot right, ZeroShot wrong on phantom-derm, test: ... of 40'
    """
    check_kinds(right_and_wrong, locals())
    ours, yours = names or (name_of(right), name_of(wrong))
    theirs = _logits(right, images)  # (N, n_cls)
    logits = _logits(wrong, images)
    labels = images.labels
    rows = ((theirs.argmax(dim=1) == labels) & (logits.argmax(dim=1) != labels)).nonzero().flatten().numpy()
    title = f"{ours} right, {yours} wrong on {images.card.name}, {images.split}: {len(rows)} of {len(images)}"
    sure = theirs.double().softmax(dim=1).max(dim=1).values[torch.from_numpy(rows)].tolist()
    notes = [f"{ours} is right, with {p:.2f}" for p in sure]
    return describe(title, images, rows, wrong, logits, train, clip, notes)


def describe(
    title: str,
    images: ImageSet,
    rows: np.ndarray,
    method: Method | Tensor | np.ndarray,
    logits: Tensor,
    train: ImageSet | None = None,
    clip: Clip | None = None,
    notes: Sequence[str] | None = None,
    n_neighbours: int = 3,
) -> Failures:
    """Everything that is known of the images `rows` (n,), right or wrong; arguments as in `failures`.

    `logits` (N, n_cls) are of all images. `notes` are n sentences.
    """
    p = logits.double().softmax(dim=1).numpy()  # (N, n_cls)
    predicted = p.argmax(axis=1)  # (N,)
    table = prediction_table(images, rows, p, predicted, notes)
    clip = method.clip if isinstance(method, Method) else clip  # a tensor, too, has a "clip"
    has_symptoms = isinstance(method, Method) and method.symptoms is not None
    if train is not None and clip is None:
        raise ValueError("nearest training images need a clip for their features; give clip=.")
    symptoms = Table(columns=SYMPTOMS)
    neighbours = Table(columns=NEIGHBOURS)
    if len(rows) and (has_symptoms or train is not None):
        features = image_features(clip, images).features  # (N, D)
        if has_symptoms:
            symptoms = symptom_evidence(method, features, rows, images.labels.numpy(), predicted)
        if train is not None:
            theirs = image_features(clip, train).features  # (N_train, D)
            ids = [images.ids[i] for i in rows]
            near = nearest_images(features[torch.from_numpy(rows)], ids, theirs, train.ids, n_neighbours)
            neighbours = neighbour_table(rows, *near, train)
    return Failures(title, images, table, symptoms, neighbours, train)


def prediction_table(
    images: ImageSet, rows: np.ndarray, p: np.ndarray, predicted: np.ndarray, notes: Sequence[str] | None
) -> pd.DataFrame:
    """`Failures.table` of the images `rows` (n,), the most confident first.

    p (N, n_cls) are all images' probabilities, predicted (N,) their labels, most often p's largest.
    """
    labels, names = images.labels.numpy(), np.array(images.card.classnames, dtype=object)  # (N,), (n_cls,)
    confidence = p[rows, predicted[rows]]  # (n,)
    others = p[rows]  # (n, n_cls), a copy
    others[np.arange(len(rows)), predicted[rows]] = -np.inf
    columns = {
        "image": rows,
        "true": names[labels[rows]],
        "predicted": names[predicted[rows]],
        "correct": predicted[rows] == labels[rows],
        "confidence": confidence,
        "p_true": p[rows, labels[rows]],
        "margin": confidence - others.max(axis=1),
        "note": pd.Series([""] * len(rows) if notes is None else list(notes), dtype=object),
    }
    table = Table(columns)
    if isinstance(images, PhantomSet):
        table = pd.concat([table, misled_by(images, rows, predicted)], axis=1)
    return table.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def name_of(method: Method | Tensor | np.ndarray) -> str:
    """What a title calls the method."""
    return type(method).__name__ if isinstance(method, Method) else "the method"


def _logits(method: Method | Tensor | np.ndarray, images: ImageSet) -> Tensor:
    """Finite logits (N, n_cls) on the CPU."""
    if isinstance(method, Method):
        images.check(method.card, name_of(method))
        logits = predict_logits(method, images)
    else:
        images.check(images.card, name_of(method))
        logits = torch.as_tensor(method).detach().cpu()
    shape = (len(images), len(images.card.classnames))
    if tuple(logits.shape) != shape:
        raise ValueError(f"the logits have shape {tuple(logits.shape)}; these images need {shape}.")
    if not torch.isfinite(logits).all():
        raise ValueError("some logits are not finite; look for NaN in the method's weights.")
    return logits
