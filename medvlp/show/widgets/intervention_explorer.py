"""Intervention explorer: how much of CILMP's edit of the LLM's states is needed for a decision."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from medvlp.data.datasets import ImageSet
from medvlp.methods.cilmp import CILMP
from medvlp.show.figures.basic import PALETTE, closed, literal_figure
from medvlp.show.figures.html import literal, picture_html
from medvlp.show.widgets.kept_rank import check_intervention, rank_effect
from medvlp.show.widgets.parts import (
    COLOURS,
    ImageExplorer,
    bar_html,
    checked_images,
    pixels_of,
    slider,
    table_html,
)

HELP = (
    "CILMP edits the language model's states for every image, along at most r directions. Keep fewer of "
    "them, the strongest first, or switch the edit off. The angle says how far a class's text feature then "
    "lies from the feature without edit."
)
BARS = {"without edit": 7, "now": 0, "as trained": 2}  # columns of the table, and colours of the palette


class InterventionExplorer(ImageExplorer):
    """Keep some directions of CILMP's edit, or none, and see probabilities and prompts move.

    `InterventionExplorer(cilmp, data.test)` at the end of a cell shows the widget. Its controls are methods,
    so that a script can do the same: `explorer.keep(1)`, then `explorer.table()`.

    Args:
        cilmp: A CILMP with an intervention.
        images: Images of its card.
        index: The image that is shown first, from 0.

    Attributes:
        index: The image that is shown.
        rank: r, the rank of the trained edit.
        kept: How many directions are kept.
        on: Whether the edit is on.

    Raises:
        ValueError: another method, one without intervention, an image that is not there.
    """

    def __init__(self, cilmp: CILMP, images: ImageSet, index: int = 0) -> None:
        """Look at the first image; see the class."""
        check_intervention(cilmp)
        checked_images(images, cilmp)
        self.cilmp, self.images, self.rank = cilmp, images, cilmp.config["rank"]
        self.kept, self.on = self.rank, True
        self.choose(index)

    def __repr__(self) -> str:
        state = f"rank {self.kept} of {self.rank} kept" if self.on else "switched off"
        return f"InterventionExplorer({self.images.card.name}: image {self.index}, edit {state})"

    def choose(self, index: int) -> None:
        """Look at another image."""
        self._take(index)
        self._pixels = pixels_of(self.cilmp.clip, [self.image])  # (1, 3, S, S)
        self._effects: dict[int, pd.DataFrame] = {}

    def keep(self, kept: int) -> None:
        """Keep so many directions of the edit, from 0 to the rank."""
        self.effect(kept)
        self.kept = int(kept)

    def switch(self, on: bool) -> None:
        """Switch the edit on or off; off is the same as no direction kept."""
        self.on = bool(on)

    def effect(self, kept: int) -> pd.DataFrame:
        """`rank_effect` of this image with so many directions."""
        if kept not in self._effects:
            self._effects[kept] = rank_effect(self.cilmp, self._pixels, int(kept))
        return self._effects[kept]

    def table(self) -> pd.DataFrame:
        """By classname: P(class) without edit, now, and as trained; angle and edit now, see `rank_effect`."""
        without, now, trained = (
            self.effect(k).set_index("classname") for k in (0, self.kept if self.on else 0, self.rank)
        )
        columns = {"without edit": without, "now": now, "as trained": trained}
        table = pd.DataFrame({name: effect["probability"] for name, effect in columns.items()})
        return table.assign(angle=now["angle"], edit=now["edit"])

    def curve(self) -> pd.DataFrame:
        """`rank_effect` of this image for every rank from 0 to the method's own, one below the other."""
        return pd.concat([self.effect(k) for k in range(self.rank + 1)], ignore_index=True)

    def decision(self) -> str:
        """In words: what is decided now, and whether that is another class than as trained."""
        table = self.table()
        return self._in_words(table["now"], table["as trained"], "As trained it is")

    def static(self) -> Figure:
        """The image, its probabilities by the rank that is kept, and how far each class's text moves."""
        curve = self.curve()
        fig, (left, middle, right) = plt.subplots(
            1, 3, figsize=(10, 2.9), layout="constrained", width_ratios=(1, 1.7, 1.7)
        )
        left.imshow(self.image, cmap="gray")
        left.set_axis_off()
        left.set_title(f"true: {self.true}", fontsize=9)
        for c, (name, rows) in enumerate(curve.groupby("classname", sort=False)):
            style = {"color": PALETTE[c % len(PALETTE)], "marker": "osD^v"[c % 5], "label": name}
            middle.plot(rows["kept"], rows["probability"], **style)
            right.plot(rows["kept"], rows["angle"], **style)
        middle.set_ylabel("probability")
        middle.set_ylim(-0.03, 1.03)
        right.set_ylabel("text feature turned by (degrees)")
        for ax in (middle, right):
            ax.set_xlabel("rank of the edit that is kept")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(color="0.9")
            sns.despine(ax=ax)
        middle.legend(fontsize=8, frameon=False)
        return closed(literal_figure(fig))

    # --- the widget ---

    def _make_box(self, widgets: Any) -> list[Any]:
        w = widgets
        self._index = slider(w, "image", len(self.images) - 1, self.index, "which image: arrow keys, or drag")
        self._kept = slider(w, "rank kept", self.rank, self.kept, "directions of the edit that are kept")
        self._on = w.Checkbox(
            value=self.on, description="edit on", tooltip="whether the states are edited", indent=False
        )
        self._picture = w.HTML(layout=w.Layout(margin="0 1em 0 0"))
        self._table = w.HTML(layout=w.Layout(flex="1 1 30em"))
        self._index.observe(lambda change: self._do(lambda: self.choose(change["new"])), names="value")
        self._kept.observe(lambda change: self._do(lambda: self.keep(change["new"])), names="value")
        self._on.observe(lambda change: self._do(lambda: self.switch(change["new"])), names="value")
        return [
            w.HTML(f"<p>{literal(HELP)}</p>"),
            self._index,
            w.Box([self._kept, self._on], layout=w.Layout(flex_flow="row wrap")),
            w.Box([self._picture, self._table], layout=w.Layout(flex_flow="row wrap")),
        ]

    def _show(self) -> None:
        self._index.value, self._kept.value, self._on.value = self.index, self.kept, self.on
        alt = f"image {self.index} of {self.images.card.name}"
        self._picture.value = picture_html(self.image, alt, "14em")
        rows = [
            [
                literal(name),
                *(bar_html(row[column], 0, 1, COLOURS[c]) for column, c in BARS.items()),
                f"{row['angle']:.2f}&deg;",
                f"{row['edit']:.3f}",
            ]
            for name, row in self.table().iterrows()
        ]
        columns = ["class", *BARS, "text turned by", "edit / states"]
        now = f"rank {self.kept} of {self.rank}" if self.on else "edit off"
        said = f'<div role="status">{literal(self.decision())}</div>'
        self._table.value = table_html(f"Probabilities; now: {now}", columns, rows) + said
