"""Questions to all methods: shots, CLIPs, new classes, a shift; see `medvlp.study.ablation.papers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlp.data.cards import DataCard, list_cards
from medvlp.data.datasets import Data
from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.questions import (
    CARDS,
    SAME,
    SEEDS,
    SHOTS,
    Ablation,
    Cards,
    Shots,
    card_of,
    runs_of,
    trained,
)

METHODS = ("ZeroShot", "LinearProbe", "TipAdapter", "CoOp", "KgCoOp", "ViP", "CILMP")
TRANSFERABLE = ("ZeroShot", "CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "CILMP")


def few_shot(
    cards: Cards = CARDS,
    shots: Shots = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = SEEDS,
) -> Ablation:
    """Methods that need seconds, against the number of training images: with learning rates 70 by default.

    Six methods, trained as in `family`, so that the two agree; 30 settings are left when rates are chosen.
    """
    symptoms = {"knowledge": "symptoms"}
    grids = [
        runs_of(Named("ZeroShot", "ZeroShot"), cards, shots, seeds, **symptoms),
        runs_of(
            Named("Linear probe", "LinearProbe"), cards, shots, seeds, **{"method.class_weight": "balanced"}
        ),
        *trained("Tip-Adapter-F", "TipAdapter", cards, shots, seeds, trained=True),
        *trained("CLIP-Adapter", "CLIPAdapter", cards, shots, seeds),
        *trained("CoOp", "CoOp", cards, shots, seeds),
        *trained("ViP", "ViP", cards, shots, seeds),
    ]
    return Ablation(
        "Which method makes most of few images, and from how many on does it matter less?",
        tuple(grids),
        {"method": "ZeroShot"},
        config=SAME,
        tune="lr",
        by=("method", "data", "shots"),
    )


def backbones(
    clips: Sequence[str],
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    methods: Sequence[str] = METHODS,
) -> Ablation:
    """Methods on several CLIPs, named as for `load_clip`: methods x CLIPs settings."""
    return Ablation(
        "Does the order of the methods depend on the CLIP beneath them?",
        (runs_of(list(methods), cards, shots, seeds, clip=list(clips)),),
        {"method": methods[0]},
    )


def base_to_new(
    cards: Cards = ("phantom-fundus",),
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    methods: Sequence[str] = TRANSFERABLE,
) -> Ablation:
    """Training on the first half of the classes, testing on both halves: 8 settings.

    Cards with four classes or more, and methods whose learned tensors all classes share: see `transfer`. ViP
    takes part without its merge prompt, which has one vector a class.
    """
    return Ablation(
        "Is what was learned on some classes of use for others?",
        (
            runs_of(list(methods), cards, shots, seeds, base_to_new=True),
            runs_of("ViP", cards, shots, seeds, base_to_new=True, aggregation="mean"),
        ),
        {"method": methods[0]},
    )


def shift(
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    methods: Sequence[str] = METHODS,
    tests: Mapping[str, str | Path | DataCard | Data] | None = None,
) -> Ablation:
    """Training on one data set, testing on it and on a shifted one: methods x 2 settings, 14 by default.

    `tests` gives the shifted data set by the name of the card, with the same classes in the same order; by
    default the card's own with "-shifted" after its name, which every phantom card has. There the best
    accuracy is known in both worlds, and what a rule of the first is worth in the second.
    """
    grids = []
    for given in cards:
        name = card_of(given).name
        other = (tests or {}).get(name, f"{name}-shifted")
        if isinstance(other, str) and not other.endswith(".md") and other not in list_cards():
            raise ValueError(f"card {name!r} has no shifted one; name a data set of its classes in tests.")
        grids.append(runs_of(list(methods), [given], shots, seeds, test=[given, other]))
    return Ablation(
        "What is left of each method's accuracy where other signs tell the classes apart?",
        tuple(grids),
        {"method": methods[0]},
    )
