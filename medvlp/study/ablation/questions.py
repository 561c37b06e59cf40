"""Ablation: a question, and the grids of runs that answer it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.data.cards import DataCard, load_card
from medvlp.data.datasets import Data
from medvlp.methods.registry import METHODS
from medvlp.study.ablation.grid import Named, combinations
from medvlp.study.training.config import recipe

CARDS = ("phantom-derm",)
SHOTS = (16,)
SEEDS = (1, 2, 3)

FACTORS = (1, 30, 1000)  # of a method's published learning rate, see `rates`
FEW_EPOCHS, ALL_EPOCHS = 50, 3
SAME = {  # recipe of all methods that are compared with each other, whatever they were published with
    "batch_size": 32,
    "views": 0,
    "warmup_lr": None,
    "metric": "loss",
    "class_weight": "balanced",
}

Cards = Sequence[str | Path | DataCard | Data]
Shots = Sequence[int | str]


@dataclass(frozen=True)
class Ablation:
    """A question and the grids whose runs answer it.

    Attributes:
        question: One sentence.
        grids: For `run_ablation`.
        baseline: What the other runs are compared with, for `Study.compare`.
        config: Fields of TrainConfig for all runs, for `run_ablation`.
        tune: A key whose values are chosen on validation, for `run_ablation`; None for no choice.
        by: The columns that make groups in tables; None for all that vary but the seed.
    """

    question: str
    grids: tuple[dict[str, Any], ...]
    baseline: dict[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    tune: str | None = None
    by: tuple[str, ...] | None = None

    @property
    def n_runs(self) -> int:
        """How many runs the grids make; with `tune` fewer are made."""
        return len(combinations(self.grids))


def runs_of(
    method: str | Named | list[str], cards: Cards, shots: Shots, seeds: Sequence[int], **fields: Any
) -> dict[str, Any]:
    """A grid with these keys, and `fields` of the method or the protocol."""
    return {"method": method, "data": list(cards), "shots": list(shots), "seed": list(seeds)} | fields


def card_of(given: str | Path | DataCard | Data) -> DataCard:
    """The card of what a grid has as its data."""
    if isinstance(given, DataCard):
        return given
    return given.card if isinstance(given, Data) else load_card(given)


def trained(
    name: str, method: str, cards: Cards, shots: Shots, seeds: Sequence[int], **fields: Any
) -> list[dict[str, Any]]:
    """Grids of a method beside others: three learning rates to choose from, and as many epochs as they have.

    The rates are the published one, 30 and 1000 times that. Published ones were made for ViT-B/16; on another
    CLIP they may hardly move a method, and then a table compares recipes. Three epochs of all images fit a
    laptop; with a GPU give more.
    """
    lr = recipe(METHODS[method]).lr
    rates = [float(f"{lr * factor:.6g}") for factor in FACTORS]
    return [
        runs_of(
            Named(name, method), cards, [n], seeds,
            epochs=ALL_EPOCHS if n == "all" else FEW_EPOCHS, lr=rates, **fields,
        )
        for n in shots
    ]  # fmt: skip
