"""Who goes where: held-out splits that keep groups whole, and few-shot sampling."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


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
    _, group = np.unique(
        np.arange(len(labels)) if groups is None else np.asarray(groups), return_inverse=True
    )  # (N,)
    counts = np.zeros((group.max(initial=-1) + 1, labels.max(initial=-1) + 1), dtype=int)  # (n_groups, n_cls)
    np.add.at(counts, (group, labels), 1)
    sizes, home = counts.sum(axis=1), counts.argmax(axis=1)  # (n_groups,), (n_groups,)
    generator = np.random.default_rng(seed)
    held_groups = np.zeros(len(sizes), dtype=bool)
    for label in np.unique(home):
        own = generator.permutation(np.flatnonzero(home == label))
        held_groups[_nearest(own, sizes, fraction * sizes[own].sum())] = True
    held = held_groups[group]  # (N,) bool
    for label in np.unique(labels):
        own = labels == label
        if held[own].all() or not held[own].any():
            raise ValueError(
                f"class {_name(label, classnames)} cannot be split: its {own.sum()} image(s) make "
                f"{len(np.unique(group[own]))} group(s), and each side needs one. Add images, or give the "
                "splits with the data."
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
    """
    labels = np.asarray(labels)  # (N,)
    if num_shots < 1:
        raise ValueError(f"num_shots must be at least 1, got {num_shots}; leave it out to use all images.")
    chosen = []
    for label in range(len(classnames)) if classnames else np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) < num_shots:
            raise ValueError(
                f"class {_name(label, classnames)} has {len(own)} training image(s), "
                f"fewer than num_shots={num_shots}."
            )
        generator = np.random.default_rng(
            [seed, int(label)]
        )  # one a class: a class more changes no other's shots
        chosen.append(generator.permutation(own)[:num_shots])
    return np.sort(np.concatenate(chosen))


def _nearest(own: np.ndarray, sizes: np.ndarray, target: float) -> list[int]:
    """Groups of `own`, in their order, that bring the sum of their sizes nearest to the target."""
    held, total = [], 0
    for group in own:
        if abs(total + sizes[group] - target) < abs(total - target) and len(held) < len(own) - 1:
            held.append(group)
            total += sizes[group]
    return held or ([own[sizes[own].argmin()]] if len(own) > 1 else [])


def _name(label: int, classnames: Sequence[str] | None) -> str:
    return repr(classnames[label]) if classnames else str(label)
