"""Whether images can serve to train a method."""

from torch import nn

from medvlp.data.datasets import ImageSet


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
