"""Figures. Each function returns a closed Figure: end a notebook cell with it to see it once."""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike
from PIL import Image

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief, check_choice, check_columns, check_kinds, unknown_name
from medvlp.data.files import atomic_write

PALETTE = sns.color_palette("colorblind")
GREY = "0.45"
_ANNOTATED = 12  # largest matrix whose cells carry their numbers


def show_images(
    images: ImageSet | Sequence[Image.Image],
    titles: Sequence[str] | None = None,
    n: int = 8,
    columns: int = 4,
) -> Figure:
    """A grid of the first `n` images, each under its title.

    Of a data set it is the first of every class, as many of each as there are, under the classes' names; with
    titles of your own, the first of all. Long lines of a title are wrapped; its own line breaks stay.

    Example:
        >>> import medvlp
        >>> from medvlp.show import show_images
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> figure = show_images(data.test, n=3)
        >>> sorted({ax.get_title() for ax in figure.axes})
        ['melanoma', 'nevus']
    """
    check_kinds(show_images, locals())
    if isinstance(images, ImageSet):
        rows = np.arange(len(images))
        if titles is None:
            # the first image of every class comes before the second of any; shown in the set's order
            turns = pd.Series(rows).groupby(images.labels.numpy()).cumcount()
            rows = np.sort(turns.argsort(kind="stable")[: max(0, n)])
            titles = [images.card.classnames[int(label)] for label in images.labels[rows]]
        images = [images.image(int(row)) for row in rows[:n]]
    images = list(images[:n])
    if not images:
        raise ValueError("there are no images to show.")
    if titles is not None and len(titles) < len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images; give one each.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side = min(1.9, 12 / columns)  # inches
    figsize = (side * columns, (side + 0.2) * rows)
    fig, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.imshow(image, cmap="gray")
        if titles is not None:
            wrapped = [textwrap.fill(line, 22) for line in titles[i].splitlines()]
            ax.set_title("\n".join(wrapped), fontsize=9)
    return closed(fig)


def contrastive_matrix(
    similarity: ArrayLike, captions: Sequence[str], images: Sequence[Image.Image] | None = None
) -> Figure:
    """The matrix of contrastive learning: cosines of images (rows) with captions (columns), (N, N).

    The pairs that belong together, the diagonal, are outlined. With `images`, each row begins with its image.

    Example:
        >>> from medvlp.show import contrastive_matrix
        >>> figure = contrastive_matrix([[0.9, 0.1], [0.2, 0.8]], ["a round spot", "a pale line"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.90', '0.10', '0.20', '0.80']
    """
    check_kinds(contrastive_matrix, locals())
    similarity = np.asarray(similarity, dtype=float)
    n = len(captions)
    if similarity.shape != (n, n):
        raise ValueError(f"similarity has shape {similarity.shape}, but {n} captions need ({n}, {n}).")
    if images is not None and len(images) != n:
        raise ValueError(f"{len(images)} images for {n} captions; give one each.")
    size = max(3.5, 0.55 * n + 1.5)
    fig, ax = plt.subplots(figsize=(size + 0.8, size + 0.6), layout="constrained")
    sns.heatmap(
        similarity,
        ax=ax,
        cmap="cividis",
        square=True,
        annot=n <= _ANNOTATED,
        fmt=".2f",
        annot_kws={"fontsize": 8},
        xticklabels=[textwrap.fill(caption, 28) for caption in captions],
        yticklabels=[f"image {i + 1}" for i in range(n)],
        cbar_kws={"label": "cosine", "shrink": 0.6},
    )
    for i in range(n):
        ax.add_patch(plt.Rectangle((i, i), 1, 1, fill=False, edgecolor=PALETTE[3], linewidth=2))
    ax.tick_params(axis="x", rotation=45, labelsize=8)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.tick_params(axis="y", rotation=0, labelsize=8)
    if images is not None:
        ax.set_yticklabels([])
        ax.tick_params(axis="y", length=0)
        for i, image in enumerate(images):
            thumbnail = ax.inset_axes((-1.1, i + 0.05, 0.9, 0.9), transform=ax.transData)
            thumbnail.imshow(image, cmap="gray")
            thumbnail.set_axis_off()
    return closed(fig)


def symptom_bars(
    scores: pd.DataFrame,
    true: str | None = None,
    predicted: str | None = None,
    image: Image.Image | None = None,
) -> Figure:
    """One image's symptom scores as bars by class, the mean of each class as a line.

    `scores` has the columns classname, symptom, score, as `symptom_scores_table` and `predict` give them. The
    class with the highest mean is what zero-shot predicts.

    Example:
        >>> import medvlp
        >>> from medvlp.show import symptom_bars
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> image = data.test.image(0)
        >>> figure = symptom_bars(medvlp.predict(zero, image).symptom_scores, image=image)
        >>> len(figure.axes)
        2
    """
    check_kinds(symptom_bars, locals())
    check_columns(scores, ["classname", "symptom", "score"], "symptom_scores_table")
    classnames = list(scores["classname"].unique())
    for name in (true, predicted):
        if name is not None and name not in classnames:
            raise ValueError(unknown_name("class", name, classnames, "the symptom scores"))
    height = 0.3 * len(scores) + 0.45 * len(classnames) + 0.6
    fig, ax = axes_beside(image, (7, height) if image is None else (9, max(height, 2.2)))
    y, ticks = 0.0, []
    for i, classname in enumerate(classnames):
        rows = scores[scores["classname"] == classname]
        colour = PALETTE[i % len(PALETTE)]
        places = y + np.arange(len(rows))
        mean = rows["score"].mean()
        ax.barh(places, rows["score"], color=colour, height=0.75, label=f"{classname}: mean {mean:.3f}")
        ax.vlines(mean, places[0] - 0.5, places[-1] + 0.5, colors="black", linestyles="dashed", linewidth=1)
        ticks += zip(places, rows["symptom"], strict=True)
        y += len(rows) + 0.7
    ax.set_yticks([place for place, _ in ticks], [textwrap.shorten(s, 60) for _, s in ticks], fontsize=8)
    ax.set_ylim(ticks[-1][0] + 0.8, -0.8)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_xlabel("cosine with the image (dashed: mean of the class)")
    ax.set_title(decision_title(true, predicted), fontsize=10)
    fig.legend(fontsize=8, loc="outside lower center", ncols=min(3, len(classnames)), frameon=False)
    sns.despine(ax=ax)
    return closed(fig)


def axes_beside(image: Image.Image | None, figsize: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure with axes to draw in, on their left the image, if there is one."""
    if image is None:
        return plt.subplots(figsize=figsize, layout="constrained")
    fig, (left, ax) = plt.subplots(1, 2, figsize=figsize, layout="constrained", width_ratios=(1, 2.5))
    left.imshow(image, cmap="gray")
    left.set_axis_off()
    return fig, ax


def decision_title(true: str | None, predicted: str | None) -> str:
    """What is known of an image's class, as a title."""
    words = {"true": true, "predicted": predicted}
    return "     ".join(f"{what}: {name}" for what, name in words.items() if name)


def interval_plot(
    tables: Mapping[str, pd.DataFrame],
    metric: str = "accuracy",
    chance: float | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """One metric of several methods: the value as a point, its 95 % interval as a line.

    Args:
        tables: `Report.table()` by the method's name, drawn from top to bottom.
        metric: A row of the tables.
        chance: Where guessing would be, as a dotted line.
        reference: Other lines by name, such as {"Bayes optimum": 0.93}, dashed.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import interval_plot
        >>> table = pd.DataFrame({"value": [0.8], "low": [0.7], "high": [0.9]}, index=["accuracy"])
        >>> figure = interval_plot({"zero-shot": table}, chance=0.5)
        >>> figure.axes[0].get_xlabel()
        'accuracy (95 % interval)'
    """
    check_kinds(interval_plot, locals())
    if not tables:
        raise ValueError("there are no tables to plot; give at least one method's Report.table().")
    for name, table in tables.items():
        check_columns(table, ["value", "low", "high"], "Report.table()")
        check_choice("metric", metric, table.index, f"the table of {brief(name)}")
    fig, ax = plt.subplots(figsize=(6.5, 0.42 * len(tables) + 1.3), layout="constrained")
    rows = pd.DataFrame({name: table.loc[metric] for name, table in tables.items()}).T
    places = np.arange(len(rows))
    ax.hlines(places, rows["low"], rows["high"], color=PALETTE[0], linewidth=2)
    ax.plot(rows["value"], places, "o", color=PALETTE[0], markersize=6)
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        text = three_decimals(row["value"])
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # no line runs through the number
        ax.text(row["value"], place - 0.16, text, ha="center", va="bottom", fontsize=8, bbox=box)
    if chance is not None:
        ax.axvline(chance, color=GREY, linestyle="dotted", label=f"chance {three_decimals(chance)}")
    reference_lines(ax.axvline, reference or {}, first=1)
    if chance is not None or reference:
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.set_yticks(places, rows.index)
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_xlabel(f"{metric} (95 % interval)")
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    sns.despine(ax=ax)
    return closed(fig)


def reference_lines(draw: Callable[..., object], reference: Mapping[str, float], first: int) -> None:
    """Values by name as dashed lines by `draw` (`ax.axhline` or `ax.axvline`), from the `first` colour on."""
    for i, (name, value) in enumerate(reference.items(), start=first):
        label = f"{name} {three_decimals(value)}"
        draw(value, color=PALETTE[i % len(PALETTE)], linestyle="dashed", label=label)


def three_decimals(value: float) -> str:
    """The value as a table shows it that pandas rounded: 0.8525 is 0.852 there, and 0.853 by `:.3f` alone."""
    return f"{np.round(value, 3):.3f}"


def save_figure(fig: Figure, name: str, made_by: str, folder: str | Path | None = None) -> Figure:
    """Write `folder`/`name`.png whole or not at all, and return the figure.

    The file names its maker, such as "notebooks/01_zero_shot_clip.ipynb", under the PNG key "Source", and
    holds neither date nor version, so that the same figure gives the same bytes. `folder` is by default the
    `figures` folder beside `notebooks`, here or in a parent folder; outside a checkout, `figures` here. Where
    nothing can be written there, a warning says so, and the figure is returned all the same.

    Raises:
        ValueError: a name that is not a bare file name, or an absolute path as `made_by`.
        OSError: a `folder` of yours that cannot be written.

    Example:
        >>> import tempfile
        >>> import matplotlib.pyplot as plt
        >>> from PIL import Image
        >>> from medvlp.show import save_figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figure = save_figure(plt.figure(), "empty", "notebooks/of_mine.ipynb", folder)
        ...     Image.open(f"{folder}/empty.png").info["Source"]
        'notebooks/of_mine.ipynb'
    """
    check_kinds(save_figure, locals())
    if not name or Path(name).name != name or name.endswith(".png"):
        raise ValueError(f"figure name {brief(name)} must be bare, as 'symptom_bars': no folder, no .png.")
    if Path(made_by).is_absolute():
        raise ValueError(f"made_by {brief(made_by)} is absolute; write it from the repository's root.")
    try:
        with atomic_write(Path(folder or figures_folder()) / f"{name}.png") as part:
            metadata = {"Source": made_by, "Software": None}
            fig.savefig(part, format="png", dpi=150, bbox_inches="tight", metadata=metadata)
    except OSError as error:
        if folder is not None:
            raise
        warnings.warn(f"the figure is not saved: {error}", stacklevel=2)
    return fig


def figures_folder() -> Path:
    """The checkout's `figures` folder, seen from the working directory or one of its parents."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "figures").is_dir() and (folder / "notebooks").is_dir():
            return folder / "figures"
    return here / "figures"


def closed(fig: Figure) -> Figure:
    """The figure as it is shown once: no backend shows it again by itself, and its text stays text.

    A symptom's dollar signs are no mathematics.
    """
    for text in fig.findobj(Text):
        text.set_parse_math(False)
    plt.close(fig)
    return fig
