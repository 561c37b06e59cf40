"""Images that are doubtful in other ways than a wrong answer: the decision wavers, or the label may be wrong.

`stability` finds decisions that a change which means nothing turns round: a shift, a mirror image, a little
more light. `label_noise_suspects` finds labels with which a probe that has not seen the image, and its
neighbours, both disagree.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import ImageLoader, image_features
from medvlp.data.cards import DataCard
from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.data.splits import group_folds
from medvlp.methods.base import Method
from medvlp.show.gallery.failures import Failures, describe, name_of, prediction_table
from medvlp.show.gallery.reasons import SYMPTOMS, nearest_images, neighbour_table
from medvlp.study.attributes import attribute_probe
from medvlp.study.evaluation import evaluating

Change = Callable[[Tensor], Tensor]  # preprocessed images (B, 3, S, S) -> changed ones

SHIFT = 1 / 32  # of the image's side: 2 pixels of 64, 7 of 224
LIGHT = 0.1
ONE_SIDED = ("chest",)  # a modality that names one of these shows organs that belong on one side
_BATCH = 64
C = 0.01  # of the probe of labels: strong, so that it does not learn single labels by heart


def harmless_changes(clip: Clip, card: DataCard) -> dict[str, Change]:
    """Changes by name that should leave every decision alone, on images as `clip.preprocess` makes them.

    Shifts to the four sides by `SHIFT` of the side (the border is repeated), 10 % more and less light, and
    the mirror image: not where the card's modality names a chest, whose heart would be on the other side.
    """
    step = max(1, round(SHIFT * clip.image_size))
    moves = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    changes: dict[str, Change] = {
        f"shifted {step} pixels {side}": _shift(dy * step, dx * step) for side, (dy, dx) in moves.items()
    }
    for word, factor in (("brighter", 1 + LIGHT), ("darker", 1 - LIGHT)):
        changes[f"{LIGHT:.0%} {word}"] = _light(clip, factor)
    if not any(word in card.modality.lower() for word in ONE_SIDED):
        changes["mirrored"] = lambda images: images.flip(-1)
    return changes


def _shift(down: int, right: int) -> Change:
    def change(images: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        rows, columns = (rows - down).clamp(0, len(rows) - 1), (columns - right).clamp(0, len(columns) - 1)
        return images[..., rows[:, None], columns]

    return change


def _light(clip: Clip, factor: float) -> Change:
    def change(images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(clip.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        return ((images * std + mean) * factor).clamp(0, 1).sub(mean).div(std)

    return change


def stability(
    method: Method, images: ImageSet, train: ImageSet | None = None, changes: dict[str, Change] | None = None
) -> Failures:
    """The images whose predicted class a harmless change turns round, right or wrong before.

    Args:
        method: a method.
        images: images of its classes.
        train: training images, of which the nearest are found.
        changes: functions of preprocessed images by name; default `harmless_changes`.

    Returns:
        Those images as they are unchanged, the most confident first; the note names the changes that turn the
        decision, and the class that each turns it to.

    Raises:
        ValueError: no change, no image, or other classes than the method's.

    Example:
        >>> import medvlp
        >>> from medvlp.show import stability
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> turned = stability(zero, data.test.subset(range(40)), changes={"nothing": lambda images: images})
        >>> len(turned)
        0
    """
    check_kinds(stability, locals())
    images.check(method.card, name_of(method))
    changes = harmless_changes(method.clip, images.card) if changes is None else changes
    if not changes:
        raise ValueError("there is no change to try; leave changes out for the harmless ones.")
    loader = ImageLoader.in_order(method.clip, images, _BATCH, num_workers=0)
    unchanged, decided = [], []
    with evaluating(method):
        for batch, _ in tqdm(loader, desc="stability", unit="batch", leave=False, delay=2):
            pixels = batch.to(method.clip.device)  # (B, 3, S, S)
            unchanged.append(method(pixels).float().cpu())
            changed = [method(change(pixels)).argmax(dim=1).cpu() for change in changes.values()]
            decided.append(torch.stack(changed))  # (n_changes, B)
    logits, decisions = torch.cat(unchanged), torch.cat(decided, dim=1).numpy()  # (N, n_cls), (n_changes, N)
    turned = decisions != logits.argmax(dim=1).numpy()  # (n_changes, N)
    rows = np.flatnonzero(turned.any(axis=0))
    classnames, names = images.card.classnames, list(changes)
    notes = [_note(classnames, names, decisions[:, i], turned[:, i]) for i in rows]
    title = (
        f"{name_of(method)} on {images.card.name}, {images.split}: {len(rows)} of {len(images)} decisions "
        "flip under a harmless change"
    )
    return describe(title, images, rows, method, logits, train, None, notes)


def _note(classnames: list[str], names: list[str], decisions: np.ndarray, turned: np.ndarray) -> str:
    """Such as "nevus when mirrored, shifted 2 pixels up"; decisions and turned are (n_changes,)."""
    by_class: dict[str, list[str]] = {}
    for k in np.flatnonzero(turned):
        by_class.setdefault(classnames[decisions[k]], []).append(names[k])
    return "; ".join(f"{classname} when {', '.join(changes)}" for classname, changes in by_class.items())


def label_noise_suspects(
    images: ImageSet, clip: Clip, n_neighbours: int = 15, folds: int = 5, seed: int = 1
) -> Failures:
    """The images whose label two witnesses contradict; no method is asked.

    One is a logistic regression on the frozen image features, fitted without the image and its group, in
    `folds` parts. By confident learning (Northcutt et al., "Confident Learning: Estimating Uncertainty in
    Dataset Labels", JAIR 70, 2021, arXiv 1911.00068) it contradicts a label where another class is the most
    probable of those that reach the mean probability which their own images have. The other is the
    `n_neighbours` nearest images of other groups: it contradicts where more of them have that other class
    than the label's. That both must agree is our choice.

    A suspect is an image to look at, not a wrong label: an image that only looks like another class is a
    suspect, too, so that there are many where classes look alike, as grades of one disease do.

    Args:
        images: images with labels, of any split. A group never speaks for itself.
        clip: gives the features.
        n_neighbours: nearest images that are asked.
        folds: parts; every class needs as many groups.
        seed: of the parts.

    Returns:
        The suspects: true is the label that was given, predicted the class that both suggest, confidence and
        p_true the probe's; the note counts neighbours. The least probable label first (p_true rises).

    Raises:
        ValueError: a class with fewer groups than folds, or too few images for that many neighbours.

    Example:
        >>> import medvlp
        >>> from medvlp.show import label_noise_suspects
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> label_noise_suspects(data.test.subset(range(60)), medvlp.load_clip("tiny")).words
        ('label', 'suggested')
    """
    check_kinds(label_noise_suspects, locals())
    images.check(images.card, "the probe")
    labels = images.labels.numpy()  # (N,)
    if not 1 <= n_neighbours < len(images):
        raise ValueError(f"n_neighbours={n_neighbours}: {len(images)} images allow 1 to {len(images) - 1}.")
    parts = group_folds(images, folds, seed)
    features = image_features(clip, images).features  # (N, D)
    x = features.double().numpy()
    probe = attribute_probe(None, C)
    p = cross_val_predict(probe, x, labels, cv=parts, method="predict_proba")  # (N, n_cls), out of fold
    suggested = confident_label(p, labels)  # (N,)

    places, cosines = nearest_images(features, images.groups, features, images.groups, n_neighbours)
    n_cls = len(images.card.classnames)
    known = np.isfinite(cosines)  # (N, n_neighbours)
    votes = (np.eye(n_cls)[labels[places]] * known[..., None]).sum(axis=1).astype(int)  # (N, n_cls)
    each = np.arange(len(labels))
    contradicted = votes[each, suggested] > votes[each, labels]
    rows = np.flatnonzero((suggested != labels) & contradicted)

    names = images.card.classnames
    notes = [
        f"{votes[i, suggested[i]]} of {known[i].sum()} nearest images are {names[suggested[i]]}, "
        f"{votes[i, labels[i]]} are {names[labels[i]]}"
        for i in rows
    ]
    table = prediction_table(images, rows, p, suggested, notes)
    table = table.sort_values("p_true", kind="stable", ignore_index=True)  # ranks better than confidence
    neighbours = neighbour_table(rows, places[rows, :3], cosines[rows, :3], images)
    title = (
        f"labels of {images.card.name}, {images.split}, that a probe and the neighbours contradict: "
        f"{len(rows)} of {len(images)}"
    )
    words = ("label", "suggested")
    return Failures(title, images, table, Table(columns=SYMPTOMS), neighbours, images, words)


def confident_label(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label that confident learning would give, (N,): the given one where it sees no reason to doubt.

    Args:
        p: (N, n_cls) probabilities of a model that has not seen the image.
        labels: (N,) the given labels; every class has one.
    """
    p_label = p[np.arange(len(labels)), labels]  # (N,)
    threshold = np.array([p_label[labels == c].mean() for c in range(p.shape[1])])  # (n_cls,)
    reaching = np.where(p >= threshold, p, -1.0)  # (N, n_cls)
    return np.where(reaching.max(axis=1) >= 0, reaching.argmax(axis=1), labels)
