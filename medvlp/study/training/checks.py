"""Whether images can serve to train a method, and whether it can be trained."""

import warnings

from torch import nn

from medvlp.data.datasets import ImageSet
from medvlp.study.training.config import TrainConfig


def check_training(method: nn.Module, train: ImageSet, val: ImageSet | None, config: TrainConfig) -> None:
    """Raise what `fit` says it raises before it starts; warn of validation on test images."""
    check_images("training", train, method)
    if val is not None:
        check_images("validation", val, method)
        if val.split == "test":
            warnings.warn(
                "validation on test images: the epoch is then chosen on the test set.", stacklevel=3
            )
    elif config.keep == "best":
        raise ValueError("fit needs validation images to find the best epoch; give val, or keep='last'.")
    learns = any(parameter.requires_grad for parameter in method.parameters())
    if not learns and not hasattr(method, "before_training"):
        raise ValueError(f"{type(method).__name__} has nothing to train: no parameter requires a gradient.")


def check_images(use: str, dataset: ImageSet, method: nn.Module) -> None:
    """Raise where these images cannot serve: none, other classes, or a label outside the card."""
    classnames, name = method.card.classnames, f"{dataset.card.name}, {dataset.split}"
    if len(dataset) == 0:
        raise ValueError(f"the {use} set ({name}) is empty.")
    if dataset.card.classnames != classnames:
        raise ValueError(
            f"{type(method).__name__} was built for card {method.card.name!r} with classes {classnames}, but "
            f"the {use} set ({name}) has {dataset.card.classnames}; build the method from the data's card."
        )
    outside = ((dataset.labels < 0) | (dataset.labels >= len(classnames))).nonzero().flatten().tolist()
    if outside:
        i = outside[0]
        raise ValueError(
            f"image {dataset.ids[i]!r} of the {use} set has label {int(dataset.labels[i])}, outside the "
            f"card's classes, 0 to {len(classnames) - 1}: {', '.join(map(repr, classnames))}."
        )
