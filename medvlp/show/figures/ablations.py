"""Figures of a study: differences with their intervals, and a metric over a grid."""

from collections.abc import Sequence
from itertools import compress

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medvlp.data.errors import brief, check_choice, check_columns, check_kinds, unknown_name
from medvlp.show.figures.basic import GREY, PALETTE, closed
from medvlp.show.figures.curves import by_size
from medvlp.study.ablation.grid import label
from medvlp.study.ablation.papers import ABLATIONS
from medvlp.study.ablation.statistics import COMPARISON, SUMMARY
from medvlp.study.ablation.tables import as_text

LEVEL = 0.05  # of the corrected p values that a figure marks
_ANNOTATED = 80  # cells; more than that and only colours are drawn
_DOTS = {  # how full a dot is, and what that says of its distance from zero
    "full": f"told apart by images (Holm p < {LEVEL}) and seeds",
    "left": "told apart by images only",
    "none": "not told apart",
}


def forest_plot(comparison: pd.DataFrame, panels: str | None = None) -> Figure:
    """Differences from the baseline with their 95 % intervals, a row each; zero is a dashed line.

    The thick line is the interval over test images, the thin grey one below it that over seeds. A full dot is
    told apart from zero by both, by the images after Holm's correction; a half one by the images only, and
    other seeds may say otherwise; a hollow one is not told apart, which is no proof that it is equal. At the
    right stand the difference and, in brackets, its p value after Holm's correction.

    Args:
        comparison: What `compare` gives, drawn from top to bottom.
        panels: A field with a panel for each of its values, such as "data".

    Raises:
        ValueError: no comparison, several baselines or metrics, or a field that is not there.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import forest_plot
        >>> comparison = pd.DataFrame({"method": ["ViP"], "baseline": "CoOp", "measure": "accuracy"})
        >>> comparison[["difference", "images low", "images high"]] = 0.1, 0.05, 0.15
        >>> comparison[["p Holm", "seeds low", "seeds high"]] = 0.004, 0.02, 0.18
        >>> forest_plot(comparison).axes[0].texts[0].get_text()
        '+0.100  (0.004)'
    """
    check_kinds(forest_plot, locals())
    fields = _fields(comparison, COMPARISON, "difference")
    check_columns(comparison, ["baseline", "seeds low", "seeds high"], "compare")
    if panels is not None and panels not in fields:
        raise ValueError(unknown_name("field", panels, fields, "the comparison"))
    for column in ("baseline", "measure"):
        if comparison[column].nunique() > 1:
            raise ValueError(f"the comparison has more than one {column}; draw one at a time.")
    labels = _labels(comparison, [field for field in fields if field != panels])
    order = list(dict.fromkeys(labels))
    of_row = _values(comparison, panels) if panels else ["all"] * len(comparison)
    values = by_size(of_row)
    fig = plt.figure(figsize=(4.2 * len(values) + 2.3, 0.45 * len(order) + 1.5), layout="constrained")
    axes = fig.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)
    for ax, value in zip(axes[0], values, strict=True):
        in_panel = np.array([other == value for other in of_row])
        places = [order.index(label) for label in compress(labels, in_panel)]
        _differences(ax, comparison[in_panel], places)
        if panels is not None:
            ax.set_title(_name(panels, value), fontsize=10)
    axes[0, 0].set_yticks(range(len(order)), order)
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    title = f"difference in {_measure(comparison)} from {comparison['baseline'].iloc[0]}"
    fig.suptitle(f"{title} (in brackets: Holm p)", fontsize=10)
    fig.legend(handles=_handles(comparison), fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    sns.despine(fig)
    return closed(fig)


def heat_map(table: pd.DataFrame, x: str, y: str) -> Figure:
    """The mean, or the difference, by two fields of a grid, with its 95 % interval over test images.

    Differences are coloured around zero, and a star marks those that the images tell apart from it (Holm
    p < 0.05), whatever the seeds say.

    Args:
        table: What `summary` or `compare` gives, with one row for each cell; cells without a row stay grey.
        x: The field that goes to the right.
        y: The field that goes down.

    Raises:
        ValueError: a column that is not there, or two rows for one cell.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import heat_map
        >>> summary = pd.DataFrame({"method": ["CoOp", "ViP"], "n_ctx": 4, "measure": "accuracy"})
        >>> summary["mean"] = [0.7, 0.8]
        >>> summary[["images low", "images high"]] = None  # as `Study.summary` gives it
        >>> [text.get_text() for text in heat_map(summary, x="n_ctx", y="method").axes[0].texts]
        ['0.700', '0.800']
    """
    check_kinds(heat_map, locals())
    main = "difference" if "difference" in table else "mean"
    fields = _fields(table, COMPARISON if main == "difference" else SUMMARY, main)
    for field in (x, y):
        check_choice("field", field, fields, "the table")
    _one_row_a_cell(table, x, y, fields)
    columns, rows = by_size(_values(table, x)), by_size(_values(table, y))
    cells = np.full((len(rows), len(columns)), np.nan)
    notes = np.full(cells.shape, "", dtype=object)
    for (_, row), right, down in zip(table.iterrows(), _values(table, x), _values(table, y), strict=True):
        cell = rows.index(down), columns.index(right)
        cells[cell], notes[cell] = row[main], _note(row, main)
    fig, ax = plt.subplots(figsize=(1.15 * len(columns) + 2.5, 0.6 * len(rows) + 1.4), layout="constrained")
    sns.heatmap(
        cells,
        ax=ax,
        annot=notes if cells.size <= _ANNOTATED else False,
        fmt="",
        annot_kws={"fontsize": 8},
        xticklabels=[as_text(column, x) for column in columns],
        yticklabels=[as_text(row, y) for row in rows],
        **_colours(cells, main),
    )
    ax.set_facecolor("0.85")
    measure = _measure(table)
    words = {"difference": f"difference in {measure}\n(* Holm p < {LEVEL}, of images alone)", "mean": measure}
    ax.collections[0].colorbar.set_label(words[main], fontsize=8)
    ax.set(xlabel=x, ylabel=y)
    ax.tick_params(axis="y", rotation=0)
    return closed(fig)


def _fields(table: pd.DataFrame, columns: Sequence[str], needed: str) -> list[str]:
    """The columns that are fields of the grid; `columns` are those that the statistics add."""
    what = "compare" if needed == "difference" else "summary or compare"
    of_differences = ["p Holm"] if needed == "difference" else []
    check_columns(table, [needed, "measure", "images low", "images high", *of_differences], what)
    if table.empty:
        raise ValueError(f"the table has no row; give what {what} gives.")
    return [column for column in table if column not in columns]


def _one_row_a_cell(table: pd.DataFrame, x: str, y: str, fields: Sequence[str]) -> None:
    for (right, down), cell in table.groupby([x, y], sort=False, dropna=False):
        if len(cell) > 1:
            varied = [field for field in fields if cell[field].nunique(dropna=False) > 1]
            raise ValueError(
                f"{len(cell)} rows have {_name(x, right)} and {_name(y, down)}; draw one value of "
                f"{' and '.join(varied) or 'what differs'} at a time."
            )


def _values(table: pd.DataFrame, field: str) -> list[object]:
    """A field row by row; None where it is missing."""
    return [None if pd.isna(value) else value for value in table[field]]


def _measure(table: pd.DataFrame) -> str:
    measure = table["measure"].iloc[0]
    return f"{measure} (lower is better)" if measure == "ECE" else measure


def _colours(cells: np.ndarray, main: str) -> dict[str, object]:
    if main == "mean":
        return {"cmap": "cividis"}
    reach = float(np.nanmax(np.abs(cells), initial=0)) or 1.0  # as far below zero as above
    return {"cmap": "vlag", "vmin": -reach, "vmax": reach}


def _name(field: str, value: object) -> str:
    """A field's value in words; a number or a gap stands behind the field's name."""
    return value if isinstance(value, str) else f"{field}={as_text(value, field)}"


def _labels(table: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    """A name for each row, of the fields that tell the rows apart."""
    varied = [field for field in fields if table[field].nunique(dropna=False) > 1] or list(fields[:1])
    return [", ".join(_name(field, row[field]) for field in varied) for _, row in table.iterrows()]


def _differences(ax: Axes, rows: pd.DataFrame, places: Sequence[int]) -> None:
    by_seeds = (rows["seeds low"] > 0) | (rows["seeds high"] < 0)
    fills = np.where(rows["p Holm"] < LEVEL, np.where(by_seeds, "full", "left"), "none")
    places = np.asarray(places)
    ax.axvline(0, color="black", linestyle="dashed", linewidth=1)
    ax.hlines(places + 0.22, rows["seeds low"], rows["seeds high"], color=GREY, linewidth=1)
    ax.hlines(places, rows["images low"], rows["images high"], color=PALETTE[0], linewidth=2.5)
    for fill in _DOTS:
        ax.plot(rows["difference"][fills == fill], places[fills == fill], **_dot(fill))
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        text = f"{_signed(row['difference'])}  ({as_text(row['p Holm'], 'p Holm')})"
        text = text if np.isfinite(row["difference"]) else "no run was done"
        ax.text(1.01, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)


def _handles(comparison: pd.DataFrame) -> list[Line2D]:
    handles = [Line2D([], [], color=PALETTE[0], linewidth=2.5, label="95 % over test images")]
    if comparison["seeds low"].notna().any():
        handles.append(Line2D([], [], color=GREY, linewidth=1, label="95 % over seeds"))
    return handles + [Line2D([], [], label=label, **_dot(fill)) for fill, label in _DOTS.items()]


def _dot(fill: str) -> dict[str, object]:
    """A dot on white; matplotlib's fill style "none" would let the interval shine through."""
    style = {"marker": "o", "linestyle": "none", "color": PALETTE[0], "markersize": 7}
    if fill == "none":
        return style | {"markerfacecolor": "white"}
    return style | {"fillstyle": fill, "markerfacecoloralt": "white"}


def _note(row: pd.Series, main: str) -> str:
    """What stands in a cell: the number, a star, and below it the interval over test images."""
    if not np.isfinite(row[main]):
        return ""
    star = "*" if main == "difference" and row["p Holm"] < LEVEL else ""
    number = _signed(row[main]) if main == "difference" else as_text(row[main], main)
    if pd.isna(row["images low"]):
        return number + star
    low, high = (as_text(row[f"images {end}"], end, digits=2) for end in ("low", "high"))
    return f"{number}{star}\n{low} to {high}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + as_text(value, "difference")


def intervention_figure(runs: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """A panel a data set, a row a method: each seed's value as a point, its 95 % interval as a line.

    Args:
        runs: What `Study.with_intervals(metric)` gives, of `shipped_study("interventions")` or one of yours.
        metric: Which of the runs' metrics.

    Example:
        >>> from medvlp.show import intervention_figure
        >>> from medvlp import shipped_study
        >>> figure = intervention_figure(shipped_study("interventions").with_intervals("accuracy"))
        >>> figure.axes[0].get_title()
        'phantom-derm'
    """
    check_kinds(intervention_figure, locals())
    drawn = ["method", "data", "seed", metric, f"{metric} low", f"{metric} high"]
    check_columns(runs, drawn, f"Study.with_intervals({brief(metric)})")
    order = [grid["method"] for grid in ABLATIONS["interventions"].grids]
    methods = [name for name in map(label, order) if name in set(runs["method"])]
    cards = sorted(runs["data"].unique())
    size = (3.3 * len(cards) + 1.8, 0.38 * len(methods) + 1)
    fig, axes = plt.subplots(1, len(cards), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, card in zip(axes[0], cards, strict=True):
        for y, method in enumerate(methods):
            seeds = runs[(runs["data"] == card) & (runs["method"] == method)].sort_values("seed")
            places = y + 0.22 * (np.arange(len(seeds)) - (len(seeds) - 1) / 2)
            colour = PALETTE[0] if method.startswith(("CILMP", "ViP")) else "0.4"
            ax.hlines(places, seeds[f"{metric} low"], seeds[f"{metric} high"], color=colour, linewidth=1)
            ax.plot(seeds[metric], places, "o", color=colour, markersize=3.5)
        ax.set_title(card, fontsize=10)
        ax.set_xlabel(f"{metric} (95 % interval)")
        ax.grid(axis="x", color="0.9")
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    sns.despine(fig)
    return closed(fig)
