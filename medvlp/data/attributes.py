"""How far two experts agree about what images show."""

import math

import pandas as pd
from sklearn.metrics import cohen_kappa_score

from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet


def attribute_agreement(images: ImageSet) -> pd.DataFrame:
    r"""How far two experts agree, attribute by attribute: the ceiling of any model.

    Cohen's kappa is $(p - p_0) / (1 - p_0)$, where $p$ is the share of images of which both say the same and
    $p_0$ the share that two experts would reach who know nothing but how often each value comes.

    Args:
        images: Those of a card with a second table of attributes; images that only one expert looked at do
            not count.

    Returns:
        Index attribute; columns images (how many both looked at), agreement (0..1) and kappa (-1..1,
        NaN where only one value was noted).

    Raises:
        ValueError: nobody described the images a second time.

    Example:
        >>> import medvlp
        >>> medvlp.attribute_agreement(medvlp.load_dataset("phantom-derm").test)
        Traceback (most recent call last):
        ValueError: card 'phantom-derm' has no second table of attributes. ...
    """
    check_kinds(attribute_agreement, locals())
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
        varied = len({*one, *other}) > 1  # else kappa is 0 / 0
        kappa = cohen_kappa_score(one, other) if varied else math.nan
        rows[name] = {"images": int(both.sum()), "agreement": (one == other).mean(), "kappa": kappa}
    return Table.from_dict(rows, orient="index").rename_axis("attribute")
