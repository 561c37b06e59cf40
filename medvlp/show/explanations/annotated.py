"""Is an explanation true, on real images? Measured where experts noted what each image shows."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from medvlp.backbone.features import image_features
from medvlp.data.errors import check_choice
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method, check_symptoms
from medvlp.show.explanations.twins import with_nonsense
from medvlp.study.attributes import attribute_probe
from medvlp.study.evaluation import evaluating
from medvlp.study.metrics import percentiles, resamples, won_pairs

# {phrase: {attribute: values, of which it claims one}}
ValueClaims = Mapping[str, Mapping[str, Sequence[str]]]
MEASURES = ("AUROC", "within")  # over all images, and among those of one class


@dataclass
class Claim:
    """That a symptom of a class claims one of some values of an attribute."""

    classname: str
    j: int  # the symptom's place in its class
    symptom: str
    attribute: str
    values: Sequence[str]


def claims_made(method: Method, claims: ValueClaims | None, images: ImageSet) -> list[Claim]:
    """The claims of a method's symptoms; ValueError where none claims anything, or an unknown attribute."""
    claims, card = method.card.claims if claims is None else claims, images.card
    made = [
        Claim(classname, j, phrase, attribute, values)
        for classname, phrases in method.symptoms.items()
        for j, phrase in enumerate(phrases)
        for attribute, values in claims.get(phrase, {}).items()
    ]
    if not made:
        raise ValueError(
            "no symptom of the method claims a value of an attribute. Write claims beside the symptoms in "
            f"card {card.name!r}, or say with claims= what each phrase claims, such as "
            "{'pink granules': {'granule colour': ['pink']}}."
        )
    for claim in made:
        check_choice("attribute", claim.attribute, images.attributes, f"card {card.name!r}")
    return made


def truth_of_symptoms(
    method: Method,
    images: ImageSet,
    claims: ValueClaims | None,
    n_bootstrap: int,
    seed: int,
    train: ImageSet | None = None,
) -> pd.DataFrame:
    """The table of `faithfulness` for annotated images; see there."""
    check_symptoms(method)
    made, weights = claims_made(method, claims, images), _weights(images, n_bootstrap, seed)
    features = image_features(method.clip, images).features  # (N, D)
    scores, table = symptom_scores(method, features), []
    learned = None if train is None else image_features(method.clip, train).features.numpy()
    for claim in made:
        noted = images.attributes[claim.attribute].dropna()
        row = {"classname": claim.classname, "symptom": claim.symptom, "attribute": claim.attribute}
        row |= {"says": " or ".join(claim.values), "images": len(noted)}
        row["true"] = noted.isin(claim.values).mean()
        row |= _row(_measures(claim, images, scores[claim.classname][:, claim.j], weights))
        if train is not None:
            known = train.attributes[claim.attribute]
            probe = attribute_probe().fit(learned[known.notna()], known.dropna().isin(claim.values))
            probed = probe.decision_function(features)
            row["probe"], row["probe within"] = _measures(claim, images, probed, weights[:1])[:, 0]
        if len(images.annotations) > 1:
            second = images.annotations[1][claim.attribute]
            says = second.isin(claim.values).astype(float).where(second.notna()).to_numpy()
            row["second"], row["second within"] = _measures(claim, images, says, weights[:1])[:, 0]
        table.append(row)
    return Table(table)


def controls_of_symptoms(
    method: Method, images: ImageSet, claims: ValueClaims | None, n_bootstrap: int, seed: int
) -> tuple[dict[str, float], Callable[[int], dict[str, dict[str, float]]]]:
    """For `faithfulness_controls` of annotated images: the symptoms' row, and the controls' by a seed."""
    check_symptoms(method)
    made, weights = claims_made(method, claims, images), _weights(images, n_bootstrap, seed)
    features = image_features(method.clip, images).features  # (N, D)

    def means(
        claims: Sequence[Claim], scores: Mapping[str, np.ndarray], weights: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Mean over claims of both measures, (2, rows); a claim that two classes make counts once."""
        once: dict[tuple[str, str], Claim] = {}
        for claim in claims:
            once.setdefault((claim.symptom, claim.attribute), claim)
        each = [_measures(c, images, scores[c.classname][:, c.j], weights) for c in once.values()]
        return np.nanmean(each, axis=0)

    def controls(seed: int) -> dict[str, dict[str, float]]:
        of_nonsense = symptom_scores(with_nonsense(method, seed)[0], features)
        drawn = {
            "shuffled": means(shuffled_values(made, seed), scores, weights[:1]),
            "gibberish": means(made, of_nonsense, weights[:1]),
        }
        return {name: dict(zip(MEASURES, values[:, 0], strict=True)) for name, values in drawn.items()}

    scores = symptom_scores(method, features)
    return _row(means(made, scores, weights)), controls


def _weights(images: ImageSet, n_bootstrap: int, seed: int) -> list[np.ndarray]:
    """How often each image counts: once in the first block, (1, N), as it is drawn in the others, (R, N)."""
    return [np.ones((1, len(images))), *resamples(images.groups, n_bootstrap, seed)]


def shuffled_values(claims: Sequence[Claim], seed: int) -> list[Claim]:
    """The same symptoms, each held against the values that another one claims of another attribute."""
    draws, others = random.Random(seed), []
    for claim in claims:
        own = {other.attribute for other in claims if other.symptom == claim.symptom}
        choices = [other for other in claims if other.attribute not in own]
        if not choices:
            raise ValueError("to shuffle, claims must be about two attributes or more.")
        other = draws.choice(choices)
        others.append(replace(claim, attribute=other.attribute, values=other.values))
    return others


def symptom_scores(method: Method, features: Tensor) -> dict[str, np.ndarray]:
    """Scores (N, symptoms) of each class, float64."""
    with evaluating(method):
        return {name: s.cpu().double().numpy() for name, s in method.symptom_scores(features).items()}


def _measures(claim: Claim, images: ImageSet, score: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC of a score (N,) for a claim, over all images and within classes, by row of weights: (2, rows).

    Images count that have a score and of which an expert noted the attribute.
    """
    noted, classes = images.attributes[claim.attribute], images.labels.numpy()  # (N,) each
    seen = noted.notna().to_numpy() & ~np.isnan(score)
    of = noted.isin(claim.values).to_numpy()[seen], score[seen]
    blocks = [block[:, seen] for block in weights]  # small ones stay in the processor's cache
    each = [
        [stratified_auroc(*of, strata[seen], block) for block in blocks] for strata in (0 * classes, classes)
    ]
    return np.stack([np.concatenate(of_strata) for of_strata in each])


def _row(samples: np.ndarray) -> dict[str, float]:
    """Both measures, (2, 1 + R), the first of each being its value, with their intervals."""
    row = {}
    for name, of_measure in zip(MEASURES, samples, strict=True):
        row |= with_interval(name, of_measure[0], percentiles(of_measure[1:]))
    return row


def with_interval(measure: str, value: float, ends: Sequence[float]) -> dict[str, float]:
    """A measure and its interval, as columns: AUROC, low, high; another's are such as "within low"."""
    of = "" if measure == "AUROC" else f"{measure} "
    return {measure: value, f"{of}low": ends[0], f"{of}high": ends[1]}


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
