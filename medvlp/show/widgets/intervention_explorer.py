"""Intervention explorer: how much of CILMP's edit of the LLM's states is needed for a decision."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import check_kinds
from medvlp.data.html import Table, literal
from medvlp.methods.cilmp import CILMP
from medvlp.show.explanations.scores import check_intervention, with_rank
from medvlp.show.figures.basic import PALETTE, closed
from medvlp.show.widgets.parts import COLOURS, ImageExplorer, table_html
from medvlp.study.evaluation import evaluating

BARS = {"without edit": COLOURS[7], "now": COLOURS[0], "as trained": COLOURS[2]}  # columns of the table


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

    Example:
        >>> import medvlp
        >>> from medvlp.show import InterventionExplorer
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> explorer = InterventionExplorer(medvlp.CILMP(medvlp.load_clip("tiny"), data.card), data.test)
        >>> explorer.keep(1)
        >>> explorer
        InterventionExplorer(phantom-derm: image 0, edit rank 1 of 8 kept)
    """

    HELP = (
        "CILMP edits the language model's states for every image, along at most r directions. Keep fewer of"
        " them, the strongest first, or switch the edit off. The angle says how far a class's text feature "
        "then lies from the feature without edit."
    )

    def __init__(self, cilmp: CILMP, images: ImageSet, index: int = 0) -> None:
        """Look at the first image; see the class."""
        check_kinds(InterventionExplorer.__init__, locals())
        check_intervention(cilmp)
        images.check(cilmp.card, "the CILMP")
        self.cilmp, self.images, self.rank = cilmp, images, cilmp.config["rank"]
        self.kept, self.on = self.rank, True
        self.choose(index)

    def __repr__(self) -> str:
        state = f"rank {self.kept} of {self.rank} kept" if self.on else "switched off"
        return f"InterventionExplorer({self.images.card.name}: image {self.index}, edit {state})"

    def choose(self, index: int) -> None:
        """Look at another image."""
        self._take(index)
        self._image_feature = self._feature(self.cilmp)  # (1, D)
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
            self._effects[kept] = rank_effect(self.cilmp, self._image_feature, int(kept))
        return self._effects[kept]

    def table(self) -> pd.DataFrame:
        """By classname: P(class) without edit, now, and as trained; angle and edit now, see `rank_effect`."""
        without, now, trained = (
            self.effect(k).set_index("classname") for k in (0, self.kept if self.on else 0, self.rank)
        )
        columns = {"without edit": without, "now": now, "as trained": trained}
        table = Table({name: effect["probability"] for name, effect in columns.items()})
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
        return closed(fig)

    # --- the widget ---

    def _make_box(self) -> list[Any]:
        w = self.widgets
        self._make_image()
        kept = self._slider("rank kept", self.rank, self.kept, "directions of the edit that are kept")
        on = w.Checkbox(self.on, description="edit on", tooltip="whether the states are edited", indent=False)
        self._kept, self._on = self._follow(kept, self.keep), self._follow(on, self.switch)
        self._table = w.HTML(layout=w.Layout(flex="1 1 30em"))
        rows = self._wrapped(self._kept, self._on), self._wrapped(self._picture, self._table)
        return [self._index, *rows]

    def _show(self) -> None:
        self._show_image()
        self._kept.value, self._on.value = self.kept, self.on
        table = self.table().rename_axis("class").reset_index()
        table["angle"] = [f"{angle:.2f}°" for angle in table["angle"]]
        table = table.rename(columns={"angle": "text turned by", "edit": "edit / states"})
        now = f"rank {self.kept} of {self.rank}" if self.on else "edit off"
        html = table_html(table, BARS, f"Probabilities; now: {now}")
        self._table.value = f'{html}<div role="status">{literal(self.decision())}</div>'


def rank_effect(cilmp: CILMP, features: Tensor, kept: int) -> pd.DataFrame:
    """What the edit, cut to a rank, does to each class of one image.

    Args:
        cilmp: A method with an intervention.
        features: (1, D), of `cilmp.image_features`.
        kept: The rank that is kept, from 0 (no edit) to the method's own.

    Returns:
        One row a class: classname, kept, probability, angle (in degrees, between the class's text feature
        and that without edit) and edit (length of the edits as a share of that of the rows edited, over all
        blocks).

    Raises:
        ValueError: as `with_rank`.
    """
    plain, cut = with_rank(cilmp, 0), with_rank(cilmp, kept)
    with evaluating(cut):
        f = features.to(cut.ctx)  # (1, D)
        t, t_plain = cut.class_features(f)[0], plain.class_features(f)[0]  # (n_cls, D)
        logits = cut.logit_scale * f.to(t) @ t.T  # (1, n_cls)
        units = (F.normalize(x.cpu().double(), dim=1) for x in (t, t_plain))  # (n_cls, D) each
        chord = torch.sub(*units).norm(dim=1)  # (n_cls,)
        lengths = _lengths(cut, f.to(t))  # (n_cls,)
    return Table(
        {
            "classname": cilmp.classnames,
            "kept": kept,
            "probability": logits[0].cpu().double().softmax(dim=0).numpy(),
            "angle": (2 * (chord / 2).asin()).rad2deg().numpy(),
            "edit": lengths.cpu().numpy(),
        }
    )


def _lengths(cut: CILMP, f: Tensor) -> Tensor:
    """Length of the kept edits over all blocks as a share of that of the rows, by class: (n_cls,)."""
    edited = rows = torch.zeros(len(cut.classnames), device=f.device)
    for site in cut.sites:
        for part, h in ((site.prefix, cut.h_first), (site.suffix, cut.h_last)):
            if part is not None:
                x, _ = part.edits(h, f)  # (1, n_cls, P, r), in orthonormal coordinates
                edited = edited + x[0].square().sum(dim=(1, 2))
                rows = rows + h.square().sum(dim=(1, 2))
    return (edited / rows).sqrt()
