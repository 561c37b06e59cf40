"""Training monitor: the curves of a run while it trains, and what is left of them in the notebook."""

import time
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from medvlp.data.html import literal, picture_html
from medvlp.show.figures.curves import check_metric, training_curves
from medvlp.study.training.callbacks import Callback
from medvlp.study.training.config import LOWER_IS_BETTER, val_column


class TrainingMonitor(Callback):
    """Curves of loss and validation that grow with every epoch: `fit(..., callbacks=[TrainingMonitor()])`.

    In a notebook they appear under the cell that trains, and stay there as a picture and a table. They are
    plain output, which needs no ipywidgets: while a cell trains, its kernel answers no control. Elsewhere
    nothing is shown, and `table()` and `static()` give what was seen.

    Args:
        metric: The metric of validation that is drawn beside the loss, as `TrainConfig.metric` names it.
        every: The least time between two drawings, in seconds; the last epoch is always drawn.

    Example:
        >>> import medvlp
        >>> from medvlp.show import TrainingMonitor
        >>> data, monitor = medvlp.load_dataset("phantom-derm", num_shots=2), TrainingMonitor()
        >>> coop = medvlp.CoOp(medvlp.load_clip("tiny"), data.card)
        >>> config = medvlp.TrainConfig(epochs=2, views=1)
        >>> history = medvlp.fit(coop, data.train, data.val, config, callbacks=[monitor], progress=False)
        >>> monitor
        TrainingMonitor(2 epochs)
    """

    def __init__(self, metric: str = "accuracy", every: float = 1.0) -> None:
        self.metric, self.every = metric, every
        self._column = val_column(metric)
        self.rows: list[dict[str, Any]] = []
        self._handle: Any = None
        self._drawn = float("-inf")

    def __repr__(self) -> str:
        return f"TrainingMonitor({len(self.rows)} epochs)"

    def on_epoch_end(self, method: nn.Module, epoch: int, row: dict[str, Any]) -> None:
        """Take the epoch's line of the history down, and draw. ValueError for a metric that it lacks."""
        check_metric(self.metric, row, "the history")
        if epoch == 1:
            self.rows = []  # of an earlier run
        self.rows.append({name: value for name, value in row.items() if isinstance(value, int | float)})
        if time.monotonic() - self._drawn >= self.every:
            self._display()

    def on_fit_end(self, method: nn.Module) -> None:
        """Draw the whole run, and begin a new output with the next run."""
        self._display()
        self._handle = None

    def state_dict(self) -> dict[str, Tensor]:
        """The epochs so far, so that a run that goes on from a checkpoint shows them, too."""
        return {name: torch.tensor(column.to_numpy()) for name, column in self.table().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        columns = {name: column.tolist() for name, column in state.items()}
        self.rows = pd.DataFrame(columns).to_dict("records")

    def table(self) -> pd.DataFrame:
        """One row an epoch: the lines of the history so far."""
        return pd.DataFrame(self.rows)

    def static(self) -> Figure:
        """The curves so far, as a figure; a dot marks the best epoch by the metric."""
        history = self.table() if self.rows else pd.DataFrame(columns=["epoch", "loss"], dtype=float)
        if self._column in history and history[self._column].notna().any():
            ranked = history[self._column] * (-1 if self.metric in LOWER_IS_BETTER else 1)
            history = history.assign(best=history.index == ranked.idxmax())
        return training_curves(history, self.metric)

    def html(self) -> str:
        """What a notebook shows: the curves, the last epoch in words, and a table that unfolds."""
        history = self.table()
        if history.empty:
            return "<p>no epoch yet</p>"
        last = history.iloc[-1].drop("epoch", errors="ignore")
        words = f"epoch {int(history['epoch'].iloc[-1])}: "
        words += ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in last.items())
        history.columns = [name.replace("_", " ") for name in history]
        table = history.to_html(index=False, border=0, float_format="{:.4g}".format)
        return (
            f"{picture_html(self.static(), 'curves of training; the table has their numbers', '46em')}"
            f'<div role="status">{literal(words)}</div>'
            f"<details><summary>table of the epochs</summary>{table}</details>"
        )

    def _display(self) -> None:
        """Show the run so far where a notebook's kernel runs; the same output each time."""
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            return
        if getattr(get_ipython(), "kernel", None) is None or not self.rows:
            return
        bundle = {"text/html": self.html(), "text/plain": repr(self)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._drawn = time.monotonic()
