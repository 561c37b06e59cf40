"""Is an explanation true, on real images? Measured where experts noted what each image shows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medvlp.backbone.features import image_features
from medvlp.data.errors import check_choice
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method, check_symptoms
from medvlp.study.evaluation import evaluating
from medvlp.study.metrics import won_pairs

# {phrase: {attribute: values, of which it claims one}}
ValueClaims = Mapping[str, Mapping[str, Sequence[str]]]


def truth_of_symptoms(
    method: Method, images: ImageSet, claims: ValueClaims | None, n_bootstrap: int, seed: int
) -> pd.DataFrame:
    """The table of `faithfulness` for annotated images; see there."""
    check_symptoms(method)
    claims = method.card.claims if claims is None else claims
    rows = [
        (classname, j, phrase, attribute, values)
        for classname, phrases in method.symptoms.items()
        for j, phrase in enumerate(phrases)
        for attribute, values in claims.get(phrase, {}).items()
    ]
    if not rows:
        raise ValueError(
            "no symptom of the method claims a value of an attribute. Write claims beside the symptoms in "
            f"card {method.card.name!r}, or say with claims= what each phrase claims, such as "
            "{'pink granules': {'granule colour': ['pink']}}."
        )
    features = image_features(method.clip, images).features  # (N, D)
    with evaluating(method):
        scores = {name: s.cpu().double().numpy() for name, s in method.symptom_scores(features).items()}
    weights = _resamples(images.groups, n_bootstrap, seed)  # (1 + R, N), the first row of ones
    classes, shown, table = images.labels.numpy(), images.attributes, []
    for classname, j, phrase, attribute, values in rows:
        check_choice("attribute", attribute, shown, f"card {images.card.name!r}")
        seen = shown[attribute].notna().to_numpy()  # (N,)
        true, score = shown[attribute].isin(values).to_numpy()[seen], scores[classname][seen, j]
        row = {"classname": classname, "symptom": phrase, "attribute": attribute, "says": " or ".join(values)}
        row |= {"images": int(seen.sum()), "true": true.mean()}
        for name, strata in (("AUROC", np.zeros_like(classes)), ("within", classes)):
            auroc, *samples = stratified_auroc(true, score, strata[seen], weights[:, seen])
            low, high = np.nanpercentile(samples, (2.5, 97.5)) if auroc == auroc else (np.nan, np.nan)
            prefix = "" if name == "AUROC" else f"{name} "
            row |= {name: auroc, f"{prefix}low": low, f"{prefix}high": high}
        table.append(row)
    return Table(table)


def stratified_auroc(
    true: np.ndarray, score: np.ndarray, strata: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    r"""How often a true image scores above a false one of the same stratum; ties count half.

        AUROC = \sum_{i true, j false, c_i = c_j} w_i w_j [s_i > s_j]  /  \sum_{the same pairs} w_i w_j

    With one stratum it is the usual AUROC. With the class as stratum, knowing the class is worth 0.5.

    Args:
        true: (N,) bool.
        score: (N,).
        strata: (N,) numbers.
        weights: (R, N), how often each image counts in each of R samples.

    Returns:
        (R,); NaN where no stratum has both.
    """
    by_image = np.ascontiguousarray(weights.T)  # (N, R), faster to sort
    won = pairs = np.zeros(len(weights))
    for stratum in np.unique(strata):
        inside = strata == stratum
        of_stratum = won_pairs(true[inside], score[inside], by_image[inside])
        won, pairs = won + of_stratum[0], pairs + of_stratum[1]
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _resamples(groups: Sequence[str], n: int, seed: int) -> np.ndarray:
    """How often each image is drawn, (1 + n, N): once in the first row, then by whole groups."""
    of_image, names = pd.factorize(np.asarray(groups))
    even = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), even, size=n)  # (n, G)
    return np.concatenate([np.ones((1, len(of_image))), drawn[:, of_image]])
