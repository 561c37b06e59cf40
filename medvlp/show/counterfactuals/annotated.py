"""Is an explanation true, on real images? Measured where experts noted what each image shows."""

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.features import image_features
from medvlp.data.errors import check_choice
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method, check_symptoms
from medvlp.show.counterfactuals.twins import gibberish, with_symptoms
from medvlp.study.ablation.statistics import t_interval
from medvlp.study.attributes import attribute_probe
from medvlp.study.evaluation import evaluating
from medvlp.study.metrics import resamples, won_pairs

# {phrase: {attribute: values, of which it claims one}}
ValueClaims = Mapping[str, Mapping[str, Sequence[str]]]


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
    made = claims_made(method, claims, images)
    shown, weights = images.attributes, resamples(images.groups, n_bootstrap, seed)
    classes, features = images.labels.numpy(), image_features(method.clip, images).features  # (N,), (N, D)
    scores, table = symptom_scores(method, features), []
    learned = None if train is None else image_features(method.clip, train).features.numpy()
    for claim in made:
        seen = shown[claim.attribute].notna().to_numpy()  # (N,)
        true = shown[claim.attribute].isin(claim.values).to_numpy()
        row = {"classname": claim.classname, "symptom": claim.symptom, "attribute": claim.attribute}
        row |= {"says": " or ".join(claim.values), "images": int(seen.sum()), "true": true[seen].mean()}
        row |= _within(true, scores[claim.classname][:, claim.j], classes, weights, seen)
        if train is not None:
            noted = train.attributes[claim.attribute]
            probe = attribute_probe().fit(learned[noted.notna()], noted.dropna().isin(claim.values))
            probed = probe.decision_function(features)
            row |= _named(_within(true, probed, classes, weights[:1], seen), "probe")
        if len(images.annotations) > 1:
            second = images.annotations[1][claim.attribute]
            both = seen & second.notna().to_numpy()
            says = second.isin(claim.values).to_numpy().astype(float)
            row |= _named(_within(true, says, classes, weights[:1], both), "second")
        table.append(row)
    return Table(table)


def controls_of_symptoms(
    method: Method, images: ImageSet, claims: ValueClaims | None, n_draws: int, n_bootstrap: int, seed: int
) -> pd.DataFrame:
    """The table of `faithfulness_controls` for annotated images; see there."""
    check_symptoms(method)
    made, classes = claims_made(method, claims, images), images.labels.numpy()
    features = image_features(method.clip, images).features  # (N, D)
    weights = resamples(images.groups, n_bootstrap, seed)

    def means(claims: Sequence[Claim], scores: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Mean over claims of both measures, (2, R); a claim that two classes make counts once."""
        measured = {}
        for claim in claims:
            key = claim.symptom, claim.attribute
            if key not in measured:
                noted = images.attributes[claim.attribute]
                seen, true = noted.notna().to_numpy(), noted.isin(claim.values).to_numpy()
                score = scores[claim.classname][:, claim.j]
                measured[key] = _both_measures(true, score, classes, weights, seen)
        return np.nanmean(list(measured.values()), axis=0)

    scores = symptom_scores(method, features)
    of_symptoms = means(made, scores, weights)  # (2, 1 + R)
    rows = {"symptoms": _ends(of_symptoms[:, 0], np.percentile(of_symptoms[:, 1:], (2.5, 97.5), axis=1).T)}
    draws_of: dict[str, list[np.ndarray]] = {"shuffled": [], "gibberish": []}
    for draw in tqdm(range(n_draws), desc="controls", unit="draw", leave=False, delay=2):
        own = seed * 10_000 + draw
        draws_of["shuffled"].append(means(shuffled_values(made, own), scores, weights[:1])[:, 0])
        nonsense = gibberish([phrase for phrases in method.symptoms.values() for phrase in phrases], own)
        lists = {c: [nonsense[phrase] for phrase in phrases] for c, phrases in method.symptoms.items()}
        of_nonsense = symptom_scores(with_symptoms(method, lists), features)
        draws_of["gibberish"].append(means(made, of_nonsense, weights[:1])[:, 0])
    for name, draws in draws_of.items():
        drawn = np.array(draws)  # (n_draws, 2)
        ends = [t_interval(pd.Series(column), least=0, most=1) for column in drawn.T]
        rows[name] = _ends(drawn.mean(axis=0), ends)
    return Table.from_dict(rows, orient="index").rename_axis("symptoms")


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


def _both_measures(
    true: np.ndarray, score: np.ndarray, classes: np.ndarray, weights: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """AUROC over all images and within classes, of those seen, under each row of weights: (2, R)."""
    one = np.zeros_like(classes)
    of = true[seen], score[seen]
    return np.stack([stratified_auroc(*of, strata[seen], weights[:, seen]) for strata in (one, classes)])


def _within(
    true: np.ndarray, score: np.ndarray, classes: np.ndarray, weights: np.ndarray, seen: np.ndarray
) -> dict[str, float]:
    """Both measures, and their intervals where there are resamples."""
    samples = _both_measures(true, score, classes, weights, seen)  # (2, 1 + R)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        ends = np.nanpercentile(samples[:, 1:], (2.5, 97.5), axis=1).T if samples.shape[1] > 1 else None
    return _ends(samples[:, 0], ends)


def _ends(values: Sequence[float], ends: Sequence[Sequence[float]] | None) -> dict[str, float]:
    row = {}
    for i, name in enumerate(("AUROC", "within")):
        row[name] = values[i]
        if ends is not None:
            prefix = "" if name == "AUROC" else "within "
            row |= {f"{prefix}low": ends[i][0], f"{prefix}high": ends[i][1]}
    return row


def _named(row: dict[str, float], who: str) -> dict[str, float]:
    return {who: row["AUROC"], f"{who} within": row["within"]}


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
