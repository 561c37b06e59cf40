"""Curves: a training run epoch by epoch, and accuracy by the number of labelled images."""

from collections.abc import Iterable, Mapping
from numbers import Real

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from medvlp.data.errors import brief, check_choice, check_columns, check_kinds, unknown_name
from medvlp.show.figures.basic import GREY, PALETTE, closed, reference_lines
from medvlp.study.ablation.statistics import t_interval
from medvlp.study.evaluation import Report
from medvlp.study.metrics import METRICS, RANGES
from medvlp.study.training.config import val_column


def training_curves(histories: pd.DataFrame | Mapping[str, pd.DataFrame], metric: str = "accuracy") -> Figure:
    """Loss and a validation metric by epoch; a dot marks the epoch whose weights were kept.

    What a history lacks is left out; without validation there is the training loss alone.

    Args:
        histories: What `fit` returned, or several such tables by name.
        metric: A metric of validation, as `TrainConfig.metric` names it.

    Raises:
        ValueError: no history, one without epochs and losses, or one whose validation has not that metric.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import training_curves
        >>> history = pd.DataFrame(
        ...     {"epoch": [1, 2], "loss": [0.7, 0.5], "val_loss": [0.7, 0.6], "val_accuracy": [0.6, 0.8]}
        ... )
        >>> figure = training_curves(history.assign(best=[False, True]))
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['loss', 'validation accuracy']
    """
    check_kinds(training_curves, locals())
    runs = {"": histories} if isinstance(histories, pd.DataFrame) else histories
    if not runs:
        raise ValueError("there is no history to draw; give what fit returned.")
    column = val_column(metric)
    for name, history in runs.items():
        where = f"the history of {brief(name)}" if name else "the history"
        check_columns(history, ["epoch", "loss"], "fit")
        check_metric(metric, history, where)
    validated = any(column in history for history in runs.values())
    size = (9 if validated else 5, 3)
    fig, axes = plt.subplots(1, 1 + validated, figsize=size, squeeze=False, layout="constrained")
    left, right = axes[0, 0], axes[0, -1]
    for i, (name, history) in enumerate(runs.items()):
        colour = PALETTE[i % len(PALETTE)]
        left.plot(history["epoch"], history["loss"], color=colour, label=f"{name} training".strip())
        if metric != "loss" and "val_loss" in history:
            style = {"color": colour, "linestyle": "dashed"}
            left.plot(history["epoch"], history["val_loss"], label=f"{name} validation".strip(), **style)
        if column in history:
            right.plot(history["epoch"], history[column], color=colour, label=name)
            best = history[history.get("best", pd.Series(False, history.index)).astype(bool)]
            right.plot(best["epoch"], best[column], "o", color=colour)
    left.set_ylabel("loss" if validated else "training loss")
    if validated:
        right.set_ylabel(f"validation {metric}")
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        ax.grid(color="0.9")
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=8, frameon=False)
    sns.despine(fig)
    return closed(fig)


def check_metric(metric: str, columns: Iterable[str], where: str) -> None:
    """Raise ValueError where a history's columns are of validation, but not by this metric."""
    known = [column.removeprefix("val_") for column in columns if column.startswith("val_")]
    if known and val_column(metric).removeprefix("val_") not in known:
        raise ValueError(unknown_name("metric", metric, known, where))


def shots_curve(
    scores: pd.DataFrame,
    metric: str = "accuracy",
    reference: Mapping[str, float] | None = None,
    interval: bool = False,
) -> Figure:
    """A metric by the number of training images a class: every run a dot, the mean over seeds a line.

    Args:
        scores: One row a run, with the columns method, num_shots (numbers, or "all", drawn last) and the
            metric. Runs without a value are left out.
        metric: The column that is drawn.
        reference: Other methods' values by name, as dashed lines.
        interval: A panel a method, in which each mean has its 95 % `t_interval` over seeds as a bar; the
            other methods' means are grey there.

    Raises:
        ValueError: a column is missing.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import shots_curve
        >>> rows = [("CoOp", 1, 0.6), ("CoOp", 4, 0.7), ("ViP", 1, 0.7), ("ViP", 4, 0.8)]
        >>> scores = pd.DataFrame(rows, columns=["method", "num_shots", "accuracy"])
        >>> figure = shots_curve(scores, reference={"zero-shot": 0.65})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['CoOp (mean of seeds)', 'ViP (mean of seeds)', 'zero-shot 0.650']
    """
    check_kinds(shots_curve, locals())
    for column in ("method", "num_shots", metric):
        check_choice("column", column, scores.columns, "the scores")
    scores = scores.dropna(subset=[metric])
    sizes = by_size(scores["num_shots"])
    largest = max((n for n in sizes if not isinstance(n, str)), default=0.5)
    places = {n: 2 * largest if isinstance(n, str) else n for n in sizes}
    scores = scores.assign(place=scores["num_shots"].map(places).astype(float))
    methods = dict(tuple(scores.groupby("method", sort=False)))
    panels = [[name] for name in methods] if interval else [list(methods)]
    columns = min(len(panels), 3)
    n_rows = -(-len(panels) // columns)
    size = (6.5, 3.4) if len(panels) == 1 else (3.2 * columns, 2.5 * n_rows)
    fig, axes = plt.subplots(
        n_rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    for ax, shown in zip(axes.flat, panels, strict=False):
        for i, (name, runs) in enumerate(methods.items()):
            mean = runs.groupby("place")[metric].mean()
            if name not in shown:
                ax.plot(mean.index, mean, color=GREY, alpha=0.4, linewidth=1, zorder=1)
                continue
            colour, again = PALETTE[i % len(PALETTE)], i // len(PALETTE) % 3
            label = f"{name} (mean of seeds)"
            ax.plot(mean.index, mean, ("-", "-.", ":")[again], color=colour, label=label)
            ax.plot(runs["place"], runs[metric], "osD"[again], color=colour, alpha=0.5, markersize=4)
            if interval:
                least, most = RANGES.get(metric, (-np.inf, np.inf))
                bars = runs.groupby("place")[metric].apply(t_interval, least=least, most=most)
                ax.vlines(mean.index, *zip(*bars, strict=True), color=colour, linewidth=1.5)
                ax.set_title(name, fontsize=9)
        reference_lines(ax.axhline, reference or {}, first=len(methods))
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(places.values()), [str(n) for n in places])
        ax.minorticks_off()
        ax.grid(color=GREY, alpha=0.2)
    if metric in METRICS:
        axes[0, 0].set_ylim(top=min(axes[0, 0].get_ylim()[1], 1.02))  # none is above 1
    if not interval or reference:
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    fig.supxlabel("training images a class" + (" (bars: 95 % over seeds)" if interval else ""), fontsize=10)
    fig.supylabel(metric, fontsize=10)
    sns.despine(fig)
    return closed(fig)


def by_size(values: Iterable[object]) -> list[object]:
    """The different values: numbers by size, then the others as they come."""
    values = list(dict.fromkeys(values))
    numbers = [value for value in values if isinstance(value, Real) and not isinstance(value, bool)]
    return sorted(numbers) + [value for value in values if value not in numbers]


def name_rate_figure(runs: pd.DataFrame, bayes: float, chance: float) -> Figure:
    """Accuracy against the rate of named captions, one panel a moment of training, a line a kind of text.

    Each seed is a mark, the line their mean.

    Args:
        runs: Those of `shipped_study("name_rate")`, with name_rate, step, knowledge and accuracy.
        bayes: The best accuracy that there can be.
        chance: That of guessing.

    Example:
        >>> from medvlp.show import name_rate_figure
        >>> from medvlp import shipped_study
        >>> figure = name_rate_figure(shipped_study("name_rate").runs, bayes=0.93, chance=0.5)
        >>> figure.axes[0].get_ylabel()
        'zero-shot accuracy'
    """
    check_kinds(name_rate_figure, locals())
    check_columns(runs, ["name_rate", "seed", "step", "knowledge", "accuracy"], "shipped_study('name_rate')")
    runs = runs.sort_values(["name_rate", "seed", "step", "knowledge"], ignore_index=True)
    steps = sorted(runs["step"].unique())
    size = (3.2 * len(steps) + 1.3, 3.2)
    fig, axes = plt.subplots(1, len(steps), figsize=size, sharey=True, layout="constrained")
    for ax, step in zip(axes, steps, strict=True):
        part = runs[runs["step"] == step]
        kinds = {"x": "name_rate", "y": "accuracy", "hue": "knowledge", "style": "knowledge", "ax": ax}
        sns.lineplot(part, **kinds, palette="colorblind", errorbar=None, legend=bool(step == steps[-1]))
        sns.scatterplot(part, **kinds, palette="colorblind", s=25, legend=False)
        ax.axhline(bayes, color="0.4", linestyle="dashed", linewidth=1)
        ax.axhline(chance, color="0.4", linestyle="dotted", linewidth=1)
        ax.set(xscale="log", title=f"after {step} steps", xlabel="share of captions that name a disease")
    beside = {"transform": axes[-1].get_yaxis_transform(), "va": "center", "fontsize": 8, "color": "0.4"}
    axes[-1].text(1.03, bayes, "Bayes optimum", **beside)
    axes[-1].text(1.03, chance, "chance", **beside)
    axes[0].set_ylabel("zero-shot accuracy")
    title = "line: mean of seeds\nmarks: each seed"
    sns.move_legend(axes[-1], "upper left", bbox_to_anchor=(1.0, 0.4), title=title, frameon=False)
    plt.close(fig)  # the powers of ten stay mathematics
    return fig


def report_curves(reports: Report | Mapping[str, Report], classname: str) -> Figure:
    """ROC, precision-recall and calibration curves of one class against the rest.

    The first two come with their areas. Calibration has ten bins of equal width of P(classname); on the
    dotted line 70 of 100 images that are given 70 % have the class.

    Args:
        reports: What `evaluate` returned, or several by names of your own: methods, or sites.
        classname: The class that is looked for, such as the disease.

    Raises:
        ValueError: no report; a class that a report does not know, that no image of it has, or that all have.

    Example:
        >>> import medvlp
        >>> from medvlp.show import report_curves
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> report = medvlp.evaluate(medvlp.ZeroShot(clip, data.card), data.test.subset(range(60)))
        >>> [ax.get_title() for ax in report_curves(report, "melanoma").axes]
        ['ROC', 'precision and recall', 'calibration']
    """
    check_kinds(report_curves, locals())
    named = reports if isinstance(reports, Mapping) else {reports.method: reports}
    if not named:
        raise ValueError("there is no report to draw; give what evaluate returned.")
    fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for i, (name, report) in enumerate(named.items()):
        check_choice("class", classname, report.classnames, f"the report of {brief(name)}")
        labels, probabilities = report.arrays()
        c = report.classnames.index(classname)
        true, p = labels == c, probabilities[:, c]  # (N,)
        if not 0 < true.sum() < len(true):
            raise ValueError(f"the report of {brief(name)} needs images of class {classname!r} and others.")
        colour = {"color": PALETTE[i % len(PALETTE)]}
        for ax, display in zip(axes, (RocCurveDisplay, PrecisionRecallDisplay), strict=False):
            display.from_predictions(true, p, ax=ax, name=name, curve_kwargs=colour)
        CalibrationDisplay.from_predictions(true, p, n_bins=10, ax=axes[2], name=name, **colour)
    axis_names = {
        "ROC": ("1 - specificity", "sensitivity"),
        "precision and recall": ("recall (sensitivity)", "precision (PPV)"),
        "calibration": (f"mean P({classname}) of a bin", f"share of {classname} in it"),
    }
    for ax, (title, (x, y)) in zip(axes, axis_names.items(), strict=True):
        ax.set(title=title, xlabel=x, ylabel=y)
        ax.legend(fontsize=8)
    return closed(fig)
