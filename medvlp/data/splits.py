"""Who goes where: held-out splits that keep groups whole, and few-shot sampling."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold

from medvlp.data.errors import brief, check_kinds
from medvlp.data.image_sets import ImageSet

VAL_SHOTS = 4  # most validation images a class when training has few shots, as in CoOp


def split(
    labels: ArrayLike,
    groups: Sequence[str] | None,
    fraction: float,
    seed: int,
    classnames: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of the images of every class, never dividing a group.

    Each class's groups are shuffled and held out one by one as long as that brings the class nearer to its
    fraction. So every class hits it to within half a group (images without groups: half an image), and
    rare classes are on both sides. (scikit-learn's StratifiedGroupKFold
    offers only fractions of 1/k and takes a second on 3,000 groups; StratifiedShuffleSplit knows no groups.)

    Args:
        labels: (N,) integers.
        groups: N names, such as patients; a group with several labels counts where most of its images are.
            None: each image is its own group.
        fraction: part to hold out, between 0 and 1.
        seed: the same seed gives the same split.
        classnames: for the error message.

    Returns:
        kept (N_kept,) and held (N_held,): sorted indices.

    Raises:
        ValueError: a class cannot be on both sides, as where it has a single group.
    """
    labels = np.asarray(labels)  # (N,)
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction to hold out must lie between 0 and 1, got {fraction}.")
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)  # (N,)
    _, group = np.unique(names, return_inverse=True)  # (N,)
    counts = np.zeros((group.max(initial=-1) + 1, labels.max(initial=-1) + 1), dtype=int)  # (n_groups, n_cls)
    np.add.at(counts, (group, labels), 1)
    sizes, home = counts.sum(axis=1), counts.argmax(axis=1)  # (n_groups,), (n_groups,)
    generator = np.random.default_rng(seed)
    held_groups = np.zeros(len(sizes), dtype=bool)
    for label in np.unique(home):
        of_class = generator.permutation(np.flatnonzero(home == label))  # groups
        held_groups[_nearest(of_class, sizes, fraction * sizes[of_class].sum())] = True
    held = held_groups[group]  # (N,) bool
    for label in np.unique(labels):
        of_class = labels == label  # (N,) bool
        if held[of_class].all() or not held[of_class].any():
            raise ValueError(
                f"class {_name(label, classnames)} cannot be split: its {of_class.sum()} image(s) make "
                f"{len(np.unique(group[of_class]))} group(s), and each side needs one. Add images, or give "
                "the splits with the data."
            )
    return np.flatnonzero(~held), np.flatnonzero(held)


def few_shot(
    labels: ArrayLike, num_shots: int, seed: int, classnames: Sequence[str] | None = None
) -> np.ndarray:
    """Draw `num_shots` images of every class.

    The draw depends on the labels and the seed alone, so every method sees the same shots, and it is
    nested: the shots of k are among those of any larger number with the same seed.

    Returns:
        Sorted indices (num_shots * n_cls,).

    Raises:
        ValueError: a class has fewer images than shots.

    Example:
        >>> import medvlp
        >>> medvlp.few_shot(labels=[0, 1, 0, 1, 0, 1], num_shots=2, seed=1).tolist()
        [0, 1, 2, 5]
    """
    check_kinds(few_shot, locals())
    labels = np.asarray(labels)  # (N,)
    if num_shots < 1:
        raise ValueError(f"num_shots must be at least 1, got {num_shots}; leave it out to use all images.")
    chosen = []
    for label in range(len(classnames)) if classnames else np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < num_shots:
            raise ValueError(
                f"class {_name(label, classnames)} has {len(rows)} training image(s), "
                f"fewer than num_shots={num_shots}."
            )
        # a generator for each class: a class more changes no other's shots
        generator = np.random.default_rng([seed, int(label)])
        chosen.append(generator.permutation(rows)[:num_shots])
    return np.sort(np.concatenate(chosen))


def cut_to_shots(train: ImageSet, val: ImageSet, num_shots: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """`num_shots` training images a class, and as many for validation, but at most 4.

    Where a class has fewer validation images, every class has that many.
    """
    rows = few_shot(train.labels, num_shots, seed, train.card.classnames)
    fewest = int(np.unique(val.labels, return_counts=True)[1].min())
    val_rows = few_shot(val.labels, min(num_shots, VAL_SHOTS, fewest), seed)
    return train.subset(rows), val.subset(val_rows)


def group_folds(images: ImageSet, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each fold the images of the others and its own, sorted indices; no group is divided.

    Each fold has the classes' shares as far as groups allow (scikit-learn's StratifiedGroupKFold).

    Raises:
        ValueError: a class with fewer groups than folds, fewer than 2 folds.
    """
    labels = images.labels.cpu().numpy()  # (N,)
    n_groups = pd.Series(images.groups).groupby(labels).nunique()
    for label, name in enumerate(images.card.classnames):
        n = n_groups.get(label, 0)
        if n < folds or folds < 2:
            raise ValueError(
                f"class {brief(name)} has {n} group(s) of images for {folds} folds; every class needs one a "
                "fold, and there are at least 2 folds."
            )
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(parts.split(labels, labels, images.groups))


def _nearest(groups: np.ndarray, sizes: np.ndarray, target: float) -> list[int]:
    """Those of the groups, in their order, that bring the sum of their sizes nearest to the target."""
    held, total = [], 0
    for group in groups:
        if abs(total + sizes[group] - target) < abs(total - target) and len(held) < len(groups) - 1:
            held.append(group)
            total += sizes[group]
    return held or ([groups[sizes[groups].argmin()]] if len(groups) > 1 else [])


def _name(label: int, classnames: Sequence[str] | None) -> str:
    return repr(classnames[label]) if classnames else str(label)
