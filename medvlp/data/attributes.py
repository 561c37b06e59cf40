"""What experts noted of images: read from the tables that a card names, and how far two experts agree."""

from collections.abc import Sequence

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from medvlp.data.cards import DataCard
from medvlp.data.errors import unknown_name
from medvlp.data.image_sets import ImageSet


def annotation_table(card: DataCard, ids: Sequence[str], rows: Sequence[dict[str, str] | None]) -> pd.DataFrame:
    """One row an image and one categorical column an attribute.

    Args:
        ids: Names of the images.
        rows: What the table says of each, by attribute; None where it has no such image. Empty text: nobody
            looked.

    Raises:
        ValueError: A value that the card does not have; the message has the image, and the nearest value.
    """
    columns = {}
    for attribute in card.attributes:
        known = {value.casefold(): value for value in attribute.values}
        texts = [row[attribute.name] if row else "" for row in rows]
        for name, text in zip(ids, texts, strict=True):
            if text and text.casefold() not in known:
                where = f"image {name!r}"
                raise ValueError(unknown_name(f"value of {attribute.name!r}", text, attribute.values, where))
        values = [known.get(text.casefold()) for text in texts]
        columns[attribute.name] = pd.Categorical(values, categories=list(attribute.values))
    return pd.DataFrame(columns, index=list(ids))


def attribute_agreement(images: ImageSet) -> pd.DataFrame:
    r"""How far two experts agree, attribute by attribute: the ceiling of any model.

    Cohen's kappa is $(p - p_0) / (1 - p_0)$, where $p$ is the share of images of which both say the same and
    $p_0$ the share that two experts would reach who know nothing but how often each value comes.

    Args:
        images: Those of a card with a second table of attributes; images that only one expert looked at do
            not count.

    Returns:
        Index attribute; columns images (how many both looked at), agreement (0..1) and kappa (-1..1).

    Raises:
        ValueError: nobody described the images a second time.

    Example:
        >>> import medvlp
        >>> medvlp.attribute_agreement(medvlp.load_dataset("phantom-derm").test)
        Traceback (most recent call last):
        ValueError: card 'phantom-derm' has no second table of attributes. ...
    """
    if len(images.annotations) < 2:
        raise ValueError(
            f"card {images.card.name!r} has no second table of attributes. A card names it under source, "
            "second_file."
        )
    first, second = images.annotations
    rows = {}
    for name in first:
        both = first[name].notna() & second[name].notna()  # (N,)
        one, other = first.loc[both, name].astype(str), second.loc[both, name].astype(str)
        rows[name] = {
            "images": int(both.sum()),
            "agreement": (one == other).mean(),
            "kappa": cohen_kappa_score(one, other),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("attribute")
