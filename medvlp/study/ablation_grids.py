"""Ablation: a question, and the grids of runs that answer it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.data.cards import DataCard, load_card
from medvlp.data.datasets import Data
from medvlp.study.grid import combinations

CARDS = ("phantom-derm",)
SHOTS = (16,)
SEEDS = (1, 2, 3)

Cards = Sequence[str | Path | DataCard | Data]
Shots = Sequence[int | str]


@dataclass(frozen=True)
class Ablation:
    """A question and the grids whose runs answer it.

    Attributes:
        question: One sentence.
        grids: For `run_ablation`.
        baseline: What the other runs are compared with, for `Study.compare`.
    """

    question: str
    grids: tuple[dict[str, Any], ...]
    baseline: dict[str, Any]

    @property
    def n_runs(self) -> int:
        """How many runs the grids make."""
        return len(combinations(self.grids))


def runs_of(
    method: str | list[str], cards: Cards, shots: Shots, seeds: Sequence[int], **fields: Any
) -> dict[str, Any]:
    """A grid with these keys, and `fields` of the method or the protocol."""
    return {"method": method, "data": list(cards), "shots": list(shots), "seed": list(seeds)} | fields


def card_of(given: str | Path | DataCard | Data) -> DataCard:
    """The card of what a grid has as its data."""
    if isinstance(given, DataCard):
        return given
    return given.card if isinstance(given, Data) else load_card(given)
