"""Labels that may be wrong: where a probe that has not seen an image, and its neighbours, both disagree."""

import numpy as np
from sklearn.model_selection import cross_val_predict

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.data.splits import group_folds
from medvlp.show.gallery.failures import Failures, prediction_table
from medvlp.show.gallery.reasons import SYMPTOMS, nearest_images, neighbour_table
from medvlp.study.attributes import attribute_probe

C = 0.01  # of the probe: strong, so that it does not learn single labels by heart


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
        raise ValueError(
            f"n_neighbours is {n_neighbours}: {len(images)} images allow 1 to {len(images) - 1}."
        )
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
