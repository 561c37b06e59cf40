"""What symptoms without meaning get from the tests of faithfulness: nonsense, and words about another thing.

Each control goes through `faithfulness` and `counterfactual` in the place of the real symptoms. A test that
they pass proves nothing.
"""

import random

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method
from medvlp.show.counterfactuals.annotated import ValueClaims, controls_of_symptoms
from medvlp.show.counterfactuals.faithfulness import counterfactual, mean_auroc, with_outcomes
from medvlp.show.counterfactuals.twins import (
    Claims,
    Flips,
    claims_of,
    flip_features,
    flips_of_features,
    gibberish,
    phantoms,
    some,
    with_symptoms,
)
from medvlp.study.ablation.statistics import t_interval

SAME_SIGN = "shuffled, same sign"


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
    if getattr(images, "annotations", ()):
        images = some(images, n_images, seed)
        return controls_of_symptoms(method, images, claims, n_draws, n_bootstrap, seed)
    images = some(phantoms(images), n_images, seed)
    features = flip_features(method.clip, images)
    flips = flips_of_features(method, images, features)
    claims = claims_of(flips.world, {"": flips.phrases}) if claims is None else claims
    value, low, high = mean_auroc(flips, claims, n_bootstrap, seed)
    row, by_image = _shares(flips, claims)
    drawn = np.random.default_rng(seed).integers(len(by_image), size=(n_bootstrap, len(by_image)))
    ends = np.percentile(by_image[drawn].mean(axis=1), (2.5, 97.5))
    rows = {"symptoms": {"AUROC": value, "low": low, "high": high} | row}
    rows["symptoms"] |= {"net low": ends[0], "net high": ends[1]}
    draws_of: dict[str, list[dict[str, float]]] = {"shuffled": [], SAME_SIGN: [], "gibberish": []}
    for draw in tqdm(range(n_draws), desc="controls", unit="draw", leave=False, delay=2):
        draw_seed = seed * 10_000 + draw
        draws_of["shuffled"].append(_control(flips, shuffled_claims(claims, draw_seed)))
        draws_of[SAME_SIGN].append(_control(flips, shuffled_claims(claims, draw_seed, turn=False)))
        nonsense = gibberish(flips.phrases, draw_seed)
        lists = {c: [nonsense[phrase] for phrase in phrases] for c, phrases in method.symptoms.items()}
        scored = flips_of_features(with_symptoms(method, lists), images, features)
        draws_of["gibberish"].append(_control(scored, {nonsense[p]: claim for p, claim in claims.items()}))
    for name, draws in draws_of.items():
        table = pd.DataFrame(draws)
        rows[name] = table.mean().to_dict()
        rows[name]["low"], rows[name]["high"] = t_interval(table["AUROC"], least=0, most=1)
        rows[name]["net low"], rows[name]["net high"] = t_interval(table["net"], least=-1, most=1)
    columns = ["AUROC", "low", "high", "more", "wrong", "most", "net", "net low", "net high"]
    return Table.from_dict(rows, orient="index", columns=columns).rename_axis("symptoms")


def _control(flips: Flips, claims: Claims) -> dict[str, float]:
    return {"AUROC": mean_auroc(flips, claims, n_bootstrap=1)[0]} | _shares(flips, claims)[0]


def _shares(flips: Flips, claims: Claims) -> tuple[dict[str, float], np.ndarray]:
    """more, wrong, most and net over all attributes, and net by image (N,)."""
    table = with_outcomes(counterfactual(flips, claims=claims).dropna(subset="matching"))
    table["net"] = table["more"].astype(float) - table["wrong"]
    shares = table[["more", "wrong", "most", "net"]].mean().to_dict()
    return shares, table.groupby("image")["net"].mean().to_numpy()
