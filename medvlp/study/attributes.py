"""Attributes that experts noted of images: how well a CLIP reads them, how far two experts agree."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.study.metrics import bootstrap, check_resamples, percentiles

BALANCED = "balanced accuracy"


def attribute_accuracy(
    clip: Clip, images: ImageSet, train: ImageSet | None = None, n_bootstrap: int = 1000, seed: int = 1
) -> pd.DataFrame:
    r"""How well a CLIP reads each attribute by its wordings, without having been shown an image of the set.

    Of image feature $f$ the answer is the value $v$ with the largest $\cos(f, t_v)$, where $t_v$ is the mean
    of the normalised text features of the wordings of $v$. Measured is balanced accuracy: the mean over the
    values of the share that is read right, so that always the commonest value is worth 1 / values.

    Args:
        clip: The CLIP.
        images: Phantoms, or images of a card with attributes; those that nobody looked at do not count.
        train: Images for a linear probe on the same features (logistic regression that weighs values alike).
        n_bootstrap: Resamples of the images, by whole groups.
        seed: Of the resampling.

    Returns:
        Index attribute; columns values (how many), chance, images, read, low, high (balanced accuracy by
        wordings with its 95 % percentile interval), probe if there is `train`, and second if a second expert
        described the images: what that expert's answers reach, on those that both looked at.

    Raises:
        ValueError: images of which no attributes are known.

    Example:
        >>> import medvlp
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=4)
        >>> table = medvlp.attribute_accuracy(medvlp.load_clip("tiny"), data.test, n_bootstrap=20)
        >>> table.columns.tolist(), bool(table["chance"].eq(0.5).all())
        (['values', 'chance', 'images', 'read', 'low', 'high'], True)
    """
    check_kinds(attribute_accuracy, locals())
    check_resamples(n_bootstrap)
    wordings, shown = wordings_of(images), images.attributes
    features = image_features(clip, images).features.numpy()  # (N, D)
    learned = None if train is None else image_features(clip, train).features.numpy()  # (N_train, D)
    rows = {}
    for name, texts in wordings.items():
        values = list(texts)
        seen = shown[name].notna().to_numpy()  # (N,)
        codes = _codes(shown[name][seen], values)  # (n,)
        by_value = [clip.encode_texts(list(phrases)).mean(dim=0) for phrases in texts.values()]  # (D,) each
        t = F.normalize(torch.stack(by_value), dim=-1).cpu()  # (V, D)
        cosines = torch.from_numpy(features[seen]) @ t.T  # (n, V)
        probabilities = (100 * cosines).softmax(dim=1).numpy()
        groups = np.asarray(images.groups)[seen]
        samples = bootstrap(codes, probabilities, groups, n_bootstrap, seed, [BALANCED])[BALANCED]
        low, high = percentiles(samples)
        read = balanced_accuracy_score(codes, probabilities.argmax(axis=1))
        row = {"values": len(values), "chance": 1 / len(values), "images": int(seen.sum())}
        row |= {"read": read, "low": low, "high": high}
        if train is not None:
            known = train.attributes[name].notna().to_numpy()
            probe = attribute_probe().fit(learned[known], _codes(train.attributes[name][known], values))
            row["probe"] = balanced_accuracy_score(codes, probe.predict(features[seen]))
        if len(images.annotations) > 1:
            both = seen & images.annotations[1][name].notna().to_numpy()
            first, second = (_codes(table[name][both], values) for table in images.annotations)
            row["second"] = balanced_accuracy_score(first, second) if both.any() else math.nan
        rows[name] = row
    return Table.from_dict(rows, orient="index").rename_axis("attribute")


def attribute_probe(class_weight: str | None = "balanced", C: float = 1.0) -> Pipeline:
    """A linear probe of features, such as for an attribute, not fitted yet."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000, class_weight=class_weight))


def wordings_of(images: ImageSet) -> dict[str, Mapping[str, Sequence[str]]]:
    """For each attribute of the images' card, or of the phantoms' world, the wordings of each value.

    ValueError where there are none.
    """
    if isinstance(images, PhantomSet):
        return {a.name: {"absent": a.absent, "present": a.present} for a in images.world.attributes}
    if not images.card.attributes or not images.annotations:
        raise ValueError(
            f"card {images.card.name!r} has no attributes: name there what experts noted of the images, the "
            "columns of the table and the wordings of each value."
        )
    return {attribute.name: attribute.values for attribute in images.card.attributes}


def _codes(values: pd.Series, order: Sequence[str]) -> np.ndarray:
    return values.astype(pd.CategoricalDtype(order)).cat.codes.to_numpy().astype(int)


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
