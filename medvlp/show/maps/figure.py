"""Figures of maps: the map, the same under other seeds, and in numbers what it hides."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from medvlp.data.errors import brief, check_choice, check_kinds, visible
from medvlp.show.figures.basic import GREY, PALETTE, closed
from medvlp.show.maps.umap import GAP, by_seed, parameters_text

MARKERS = ("o", "^", "s", "D", "P", "X", "v", "*", "<", ">")


def map_figure(
    maps: pd.DataFrame,
    hidden: pd.DataFrame | None,
    colour: str = "classname",
    marker: str = "what",
    title: str = "",
) -> Figure:
    """The map of the first seed with its parameters, maps of other seeds small beside it, and what is hidden.

    Axes have no numbers: position, distance and area mean nothing, only what lies beside what. Kinds of
    points that are few are drawn larger, and last.

    Args:
        maps: What `map_points` gives for several seeds; up to three others are drawn.
        hidden: What `what_a_map_hides` says of them; it is printed below. None only where it is said beside.
        colour: A column. Up to 10 values have colours that the colour-blind can tell apart.
        marker: A column of up to 10 values.
        title: Above the map.

    Raises:
        ValueError: an unknown column, or too many values for markers.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import map_figure
        >>> maps = pd.DataFrame({"x": [0, 1], "y": [1, 0], "classname": ["a", "b"], "what": "class"})
        >>> maps = maps.assign(n_neighbors=2, min_dist=0.1, metric="cosine", seed=1, image=pd.NA)
        >>> map_figure(maps, None).axes[0].get_xlabel()
        'UMAP: n_neighbors 2, min_dist 0.1, metric cosine, seed 1'
    """
    check_kinds(map_figure, locals())
    each = by_seed(maps)
    styles = MapStyles(maps, colour, marker)
    small = each[1:4]
    text = "" if hidden is None else hidden_text(hidden)
    height = 3.7 + 0.17 * (text.count("\n") + 1)
    fig = plt.figure(figsize=(6.6 if small else 5.4, height), layout="constrained")
    grid = fig.add_gridspec(2, 2 if small else 1, height_ratios=(3.7, height - 3.7))
    if small:
        grid.set_width_ratios((3.3, 1))
        side = grid[0, 1].subgridspec(len(small), 1)
    main = fig.add_subplot(grid[0, 0])
    styles.draw(main, each[0], 1.0)
    main.set_title(visible(title), fontsize=11)
    main.set_xlabel(parameters_text(each[0]), fontsize=8)
    for i, one in enumerate(small):
        ax = fig.add_subplot(side[i])
        styles.draw(ax, one, 0.3)
        ax.set_xlabel(f"seed {one['seed'].iloc[0]}", fontsize=8)
    below = fig.add_subplot(grid[1, :])
    below.set_axis_off()
    below.text(0, 1, visible(text), family="monospace", fontsize=8, va="top", transform=below.transAxes)
    main.get_legend().remove()
    fig.legend(*main.get_legend_handles_labels(), fontsize=8, loc="outside right upper", frameon=False)
    return closed(fig)


class MapStyles:
    """How each value of two columns is drawn, the same in every map; raises what `map_figure` raises."""

    def __init__(self, maps: pd.DataFrame, colour: str, marker: str) -> None:
        for column in (colour, marker):
            check_choice("column", column, maps.columns, "the map")
        self.colour, self.marker = colour, marker
        colours, kinds = _values(maps[colour]), _values(maps[marker])
        if len(kinds) > len(MARKERS):
            raise ValueError(
                f"column {brief(marker)} has {len(kinds)} values, but there are {len(MARKERS)} markers; "
                "give another column, or fewer points."
            )
        palette = PALETTE if len(colours) <= len(PALETTE) else sns.color_palette("husl", len(colours))
        self.palette = dict(zip(colours, palette, strict=False))
        self.markers = dict(zip(kinds, MARKERS, strict=False))
        counts = _texts(maps[marker]).value_counts() / maps["seed"].nunique()
        self.sizes = {kind: float(np.clip(4000 / counts[kind], 10, 64)) for kind in kinds}

    def in_order(self, one: pd.DataFrame) -> pd.DataFrame:
        """The points of one map as they are drawn: what is rare comes last, on top."""
        return one.iloc[np.argsort(_texts(one[self.marker]).map(self.sizes), kind="stable")]

    def codes(self, one: pd.DataFrame) -> dict[str, list]:
        """The styles as lists, fit for JSON: names, colours and radii, and which each point has."""
        colours, kinds = list(self.palette), list(self.markers)
        return {
            "colours": colours,
            "kinds": kinds,
            "palette": [to_hex(colour) for colour in self.palette.values()],
            "radius": [round(self.sizes[kind] ** 0.5 * 0.75, 2) for kind in kinds],
            "colour": _texts(one[self.colour]).map(colours.index).tolist(),
            "kind": _texts(one[self.marker]).map(kinds.index).tolist(),
        }

    def draw(self, ax: Axes, one: pd.DataFrame, scale: float) -> None:
        """One map, its points `scale` times as large."""
        one = self.in_order(one)
        sns.scatterplot(
            one.assign(**{name: _texts(one[name]) for name in (self.colour, self.marker)}),
            x="x",
            y="y",
            hue=self.colour,
            hue_order=list(self.palette),
            palette=self.palette,
            style=self.marker,
            style_order=list(self.markers),
            markers=self.markers,
            size=self.marker,
            size_order=list(self.markers),
            sizes={kind: scale * size for kind, size in self.sizes.items()},
            linewidth=0.4 * scale,
            ax=ax,
            legend="full" if scale == 1 else False,
        )
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
        ax.set_box_aspect(1)
        for side in ax.spines.values():
            side.set_color(GREY)


def _texts(column: pd.Series) -> pd.Series:
    """A column as texts in which nothing acts unseen; a dash where there is nothing."""
    return column.astype(object).replace("", pd.NA).fillna("-").map(str).map(visible)


def _values(column: pd.Series) -> list[str]:
    """The texts that occur, in the order of a categorical column's categories, else of their appearance."""
    texts = list(dict.fromkeys(_texts(column)))
    if isinstance(column.dtype, pd.CategoricalDtype):
        order = [visible(str(category)) for category in column.cat.categories]
        texts.sort(key=lambda text: order.index(text) if text in order else len(order))
    return texts


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


def hidden_text(hidden: pd.DataFrame) -> str:
    """`what_a_map_hides` as lines of text, a fixed width."""
    lines = [f"{'what the map hides':36}{'original':>10}{'map':>10}   over seeds"]
    for measure, row in hidden.iterrows():
        value, drawn = (_number(row[c]) if pd.notna(row[c]) else "-" for c in ("original", "map"))
        spread = f"{row['lowest']:.3f} to {row['highest']:.3f}" if pd.notna(row["lowest"]) else ""
        lines.append(f"{textwrap.shorten(str(measure), 35):36}{value:>10}{drawn:>10}   {spread}".rstrip())
    if any(str(measure).startswith(GAP) for measure in hidden.index):
        lines.append("A gap is the distance between two modalities' centroids on the unit sphere, 0 to 2.")
        lines.append("Where it is wide, they stand apart in the map whatever their classes are.")
    return "\n".join(lines)
