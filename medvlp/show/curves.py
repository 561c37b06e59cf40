"""Curves: a training run epoch by epoch, and accuracy by the number of labelled images."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from medvlp.data.names import unknown_name
from medvlp.show.plots import GREY, PALETTE, closed, reference_lines


def training_curves(histories: pd.DataFrame | Mapping[str, pd.DataFrame], metric: str = "accuracy") -> Figure:
    """Loss and a validation metric by epoch; a dot marks the epoch whose weights were kept.

    Args:
        histories: What `fit` returned, or several such tables by name.
        metric: A metric of validation, as `TrainConfig.metric` names it.

    Raises:
        ValueError: no history, or one without that metric.
    """
    runs = {"": histories} if isinstance(histories, pd.DataFrame) else histories
    if not runs:
        raise ValueError("there is no history to draw; give what fit returned.")
    column = "val_" + metric.replace(" ", "_").replace("-", "_")
    for name, history in runs.items():
        if column not in history:
            known = [c.removeprefix("val_") for c in history if c.startswith("val_")]
            where = f"the history of {name!r}" if name else "the history"
            raise ValueError(unknown_name("metric", metric, known, where))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for i, (name, history) in enumerate(runs.items()):
        colour, best = PALETTE[i % len(PALETTE)], history[history["best"]]
        left.plot(history["epoch"], history["loss"], color=colour, label=f"{name} training".strip())
        if metric != "loss":
            style = {"color": colour, "linestyle": "dashed"}
            left.plot(history["epoch"], history["val_loss"], label=f"{name} validation".strip(), **style)
        right.plot(history["epoch"], history[column], color=colour, label=name)
        right.plot(best["epoch"], best[column], "o", color=colour)
    left.set_ylabel("loss")
    right.set_ylabel(f"validation {metric}")
    for ax in (left, right):
        ax.set_xlabel("epoch")
        ax.grid(color="0.9")
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=8, frameon=False)
    sns.despine(fig)
    return closed(fig)


def shots_curve(
    scores: pd.DataFrame, metric: str = "accuracy", reference: Mapping[str, float] | None = None
) -> Figure:
    """A metric by the number of training images a class: every run a dot, the mean over seeds a line.

    Args:
        scores: One row a run, with the columns method, shots and the metric.
        metric: The column that is drawn.
        reference: Other methods' values by name, as dashed lines.

    Raises:
        ValueError: a column is missing.
    """
    for column in ("method", "shots", metric):
        if column not in scores:
            raise ValueError(unknown_name("column", column, scores.columns, "the scores"))
    fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    shots = sorted(scores["shots"].unique())
    for i, (name, runs) in enumerate(scores.groupby("method", sort=False)):
        mean, colour = runs.groupby("shots")[metric].mean(), PALETTE[i % len(PALETTE)]
        ax.plot(mean.index, mean, color=colour, label=f"{name} (mean of seeds)")
        ax.plot(runs["shots"], runs[metric], "o", color=colour, alpha=0.5, markersize=4)
    reference_lines(ax.axhline, reference or {}, first=scores["method"].nunique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, [str(n) for n in shots])
    ax.minorticks_off()
    ax.set_xlabel("training images a class")
    ax.set_ylabel(metric)
    ax.grid(color=GREY, alpha=0.2)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    sns.despine(fig)
    return closed(fig)
