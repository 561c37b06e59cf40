"""What symptoms without meaning get from the tests of faithfulness: nonsense, and words about another thing.

Each control goes through `faithfulness` and `counterfactual` in the place of the real symptoms. A test that
they pass proves nothing.
"""

import random
from collections.abc import Callable

import pandas as pd
from tqdm.auto import tqdm

from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.methods.base import Method
from medvlp.show.explanations.annotated import ValueClaims, controls_of_symptoms, with_interval
from medvlp.show.explanations.faithfulness import (
    auroc_ends,
    counterfactual,
    mean_auroc,
    share_ends,
    with_outcomes,
)
from medvlp.show.explanations.twins import (
    Claims,
    Flips,
    claims_of,
    flip_features,
    flips_of_features,
    phantoms,
    some,
    with_nonsense,
)
from medvlp.study.ablation.statistics import t_interval

OUTCOMES = ["more", "wrong", "most", "net"]
LEAST = {"AUROC": 0, "within": 0, "net": -1}  # of the measures that have an interval; the most is 1


def shuffled_claims(claims: Claims, seed: int = 1, turn: bool = True) -> dict[str, tuple[str, bool]]:
    """The same phrases, each held against another attribute.

    The attributes change places so that none stays, all such orders being alike likely. With `turn` a coin
    for each attribute also says whether "present" and "absent" change places. Without it what is left of the
    signal is what all signs of a disease share, as far as the towers have learned that they come together.

    Raises:
        ValueError: claims about fewer than two attributes.
    """
    names = list(dict.fromkeys(attribute for attribute, _ in claims.values()))
    if len(names) < 2:
        raise ValueError(f"to shuffle, claims must be about two attributes or more, not {names}.")
    order, moved = random.Random(seed), list(names)
    while any(a == b for a, b in zip(names, moved, strict=True)):
        order.shuffle(moved)
    other = dict(zip(names, moved, strict=True))
    turned = {attribute: turn and order.random() < 0.5 for attribute in names}
    return {p: (other[attribute], says != turned[attribute]) for p, (attribute, says) in claims.items()}


def faithfulness_controls(
    method: Method,
    images: ImageSet,
    claims: Claims | ValueClaims | None = None,
    n_draws: int = 20,
    n_images: int | None = 500,
    n_bootstrap: int = 1000,
    seed: int = 1,
) -> pd.DataFrame:
    """The tests of faithfulness in one line each, for a method's symptoms and for controls that mean nothing.

    Args:
        method: `ZeroShot` with symptoms, or `ViP`.
        images: Phantoms, or images of a card with attributes, such as `data.test`.
        claims: What each phrase claims, as `faithfulness` takes it.
        n_draws: Of each control; 2 or more.
        n_images: How many of the images are used, drawn by `seed`; None: all.
        n_bootstrap: Resamples of the images, for the symptoms' own intervals.
        seed: Of images, resampling and controls.

    Returns:
        Rows symptoms; shuffled (each phrase held against another attribute, either way round); "shuffled,
        same sign" (what says present still does); gibberish (nonsense in place of each phrase).
        AUROC, low, high: the mean over phrases, chance 0.5; more, wrong, most: as in
        `counterfactual_summary`, over all attributes; net, net low, net high: more less wrong, chance 0.
        Intervals, 95 %: of the symptoms, percentiles over images; of the controls, `t_interval` over draws,
        for another draw is what could have come out otherwise.

        Of a card with attributes: rows symptoms, shuffled (each phrase held against what another claims of
        another attribute) and gibberish; AUROC and within, as in `faithfulness`, with their intervals.

    Raises:
        ValueError: as `faithfulness`, or fewer than two draws.

    Example:
        >>> import medvlp
        >>> from medvlp.show import faithfulness_controls
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> table = faithfulness_controls(zero, data.test, n_draws=2, n_images=20, n_bootstrap=10)
        >>> list(table.index)
        ['symptoms', 'shuffled', 'shuffled, same sign', 'gibberish']
    """
    check_kinds(faithfulness_controls, locals())
    if n_draws < 2:
        raise ValueError(f"n_draws is {n_draws}; an interval over draws needs at least 2, such as 20.")
    annotated = getattr(images, "annotations", ())
    images = some(images if annotated else phantoms(images), n_images, seed)
    measured = controls_of_symptoms if annotated else _of_phantoms
    symptoms, controls = measured(method, images, claims, n_bootstrap, seed)
    bar = tqdm(range(n_draws), desc="controls", unit="draw", leave=False, delay=2)
    draws = [controls(seed * 10_000 + draw) for draw in bar]
    rows = {"symptoms": symptoms}
    for name in draws[0]:
        table = pd.DataFrame([draw[name] for draw in draws])
        rows[name] = table.mean().to_dict()
        for measure in table.columns.intersection(LEAST):
            ends = t_interval(table[measure], least=LEAST[measure], most=1)
            rows[name] |= with_interval(measure, table[measure].mean(), ends)
    return Table.from_dict(rows, orient="index", columns=list(symptoms)).rename_axis("symptoms")


def _of_phantoms(
    method: Method, images: PhantomSet, claims: Claims | None, n_bootstrap: int, seed: int
) -> tuple[dict[str, float], Callable[[int], dict[str, dict[str, float]]]]:
    """The symptoms' row, and the controls' by a seed."""
    features = flip_features(method.clip, images)
    flips = flips_of_features(method, images, features)
    claims = claims_of(flips.world, {"": flips.phrases}) if claims is None else claims
    outcomes = _outcomes(flips, claims)
    row = with_interval("AUROC", mean_auroc(flips, claims), auroc_ends(flips, claims, n_bootstrap, seed))
    row |= outcomes[OUTCOMES].mean().to_dict()
    row |= with_interval("net", row["net"], share_ends(outcomes, "net", True, n_bootstrap, seed))

    def control(flips: Flips, claims: Claims) -> dict[str, float]:
        return {"AUROC": mean_auroc(flips, claims)} | _outcomes(flips, claims)[OUTCOMES].mean().to_dict()

    def controls(seed: int) -> dict[str, dict[str, float]]:
        other, nonsense = with_nonsense(method, seed)
        of_nonsense = {nonsense[phrase]: claim for phrase, claim in claims.items()}
        return {
            "shuffled": control(flips, shuffled_claims(claims, seed)),
            "shuffled, same sign": control(flips, shuffled_claims(claims, seed, turn=False)),
            "gibberish": control(flips_of_features(other, images, features), of_nonsense),
        }

    return row, controls


def _outcomes(flips: Flips, claims: Claims) -> pd.DataFrame:
    """What came of each image and attribute that a symptom names."""
    return with_outcomes(counterfactual(flips, claims=claims).dropna(subset="matching"))
