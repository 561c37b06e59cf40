"""transfer: what was learned on some classes, used for others."""

import math
from collections.abc import Mapping
from typing import Any

from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, listed
from medvlp.methods.base import Method, check_named_arguments, load_own_tensors, own_tensors


def base_and_new(card: DataCard) -> tuple[DataCard, DataCard]:
    """The first half of a card's classes, one more where they are odd, and the others.

    So CoCoOp (Zhou et al., CVPR 2022, arXiv 2203.05557) divides them into base classes, to train on, and new
    ones. ValueError for a card with fewer than four classes, since a classifier needs two of each.
    """
    names = card.classnames
    if len(names) < 4:
        raise ValueError(f"card {card.name!r} has {len(names)} classes; base and new ones need two each.")
    half = math.ceil(len(names) / 2)
    return card.with_classes(names[:half]), card.with_classes(names[half:])


def transfer(method: Method, card: DataCard, changes: Mapping[str, Any] | None = None) -> Method:
    """The same method with the same learned tensors for the classes of another card.

    The method is built again from its configuration, so that its texts are those of the new classes, and gets
    copies of the learned tensors. That has a meaning where no tensor belongs to a class, as in CoOp with a
    shared context. Whether one does is found out by building the method for another number of classes. A card
    with the same classes in the same order, such as a shifted one, takes every tensor.

    Args:
        method: A `Method`; it stays as it is.
        card: The new classes.
        changes: Arguments of the method that are others for the new classes, such as its own `symptoms`, or
            `representations` that do not ship with the package.

    Returns:
        The method for `card`, in evaluation mode, on the same CLIP.

    Raises:
        TypeError: a constructor that takes *args alone.
        ValueError: a tensor that belongs to a class, which is named; the same classes in another order;
            what the method itself raises for the card, such as classes without symptoms.
    """
    kind, old, new = type(method), method.card.classnames, card.classnames
    check_named_arguments(kind)
    config = method.config | dict(changes or {})
    if old != new and sorted(old) == sorted(new):
        raise ValueError(
            f"card {card.name!r} has the classes of {kind.__name__} in another order, {new}; "
            f"use its order, {old}: card.with_classes(method.card.classnames)."
        )
    built = kind(method.clip, card, **config)
    if old != new:
        other = built if len(old) != len(new) else _for_all_classes(method, card, changes or {})
        bound = _differ(method, other)
        if bound:
            raise ValueError(
                f"{kind.__name__} as configured has learned {listed(bound)} for its "
                f"{len(old)} classes, and that says nothing about others, such as {brief(new[0])}. Transfer "
                "needs a method whose learned tensors all classes share, such as CoOp with csc=False."
            )
    load_own_tensors(built, own_tensors(method), f"the {kind.__name__} given")
    return built.eval()


def _for_all_classes(method: Method, card: DataCard, changes: Mapping[str, Any]) -> Method:
    """The method untrained, for its own classes and those of the card: more than either has."""
    more = [info for info in card.classes if info.name not in method.card.classnames]
    both = method.card.model_copy(update={"classes": [*method.card.classes, *more]})
    config = dict(method.config)
    for key, value in changes.items():
        per_class = isinstance(config.get(key), Mapping) and isinstance(value, Mapping)
        config[key] = config[key] | dict(value) if per_class else value
    try:
        return type(method)(method.clip, both, **config)
    except ValueError as error:
        raise ValueError(
            f"whether the tensors of {type(method).__name__} belong to classes shows only when it is built "
            f"for the old and the new ones together, which fails: {error} Let the changes cover them all."
        ) from error


def _differ(method: Method, other: Method) -> list[str]:
    """Names of the tensors that only one of both has, or that have another shape."""
    ours, theirs = ({n: t.shape for n, t in own_tensors(m).items()} for m in (method, other))
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
