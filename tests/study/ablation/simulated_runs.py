"""Runs of simulated classifiers, whose true accuracy is known, as the statistics take them."""

import numpy as np
import pandas as pd

from medvlp.study.ablation.statistics import Predictions
from medvlp.study.metrics import metric_values


class Runs:
    """Runs that are added one by one; `table` and `predictions` are what the statistics take."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray | None = None, values=metric_values) -> None:
        self.labels, self.values = labels, values
        self.groups = np.arange(len(labels)) if groups is None else groups
        self.rows: list[dict] = []
        self.found: dict[str, Predictions] = {}

    def add(self, right: np.ndarray, seed: int = 1, status: str = "done", **fields) -> "Runs":
        """A run of two classes that names those images right, with probability 0.8 for what it says."""
        said = np.where(right, self.labels, 1 - self.labels)
        return self.add_probabilities(np.eye(2)[said] * 0.6 + 0.2, seed, status, **fields)

    def add_probabilities(self, p: np.ndarray, seed: int = 1, status: str = "done", **fields) -> "Runs":
        run = f"run{len(self.rows)}"
        metrics = self.values(self.labels, p) if status == "done" else {}
        self.rows.append({"run": run, **fields, "seed": seed, "status": status, **metrics})
        if status == "done":
            self.found[run] = Predictions(self.labels, self.groups, p)
        return self

    def predictions(self, run: str) -> Predictions:
        return self.found[run]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def both_right(n: int, both: int, only_a: int, only_b: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n images two classifiers name right, (n,) each: so many both, so many only one of them."""
    image = np.arange(n)
    return image < both + only_a, (image < both) | (
        (image >= both + only_a) & (image < both + only_a + only_b)
    )
