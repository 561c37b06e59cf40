"""Phantom lab: draw a phantom with the attributes that one likes, and see what methods make of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from medvlp.data.errors import brief, check_kinds, listed
from medvlp.data.html import Table, literal, picture_html
from medvlp.data.phantoms.drawing import Draws
from medvlp.data.phantoms.worlds import Attribute, World, get_world
from medvlp.methods.base import Method
from medvlp.show.figures.basic import closed, show_images
from medvlp.show.widgets.parts import COLOURS, Explorer, table_html
from medvlp.study.prediction import predict

SIZE = 64  # pixels a side
SCORES = ["method", "classname", "symptom", "score", "change"]


def draw_phantom(world: World, strengths: Mapping[str, float], seed: int) -> Image.Image:
    """A phantom with each attribute drawn as strongly as `strengths` says, from 0 (absent) to 1 (present).

    0 and 1 give the pixels of `world.render`. What tells nothing of the class (place, light, noise) follows
    from `seed`. ValueError for an attribute that is missing or unknown, or a strength outside 0 to 1.
    """
    for name, strength in strengths.items():
        world.index(name)
        if not 0 <= strength <= 1:
            raise ValueError(f"attribute {brief(name)} must be 0 (absent) to 1 (present), got {strength}.")
    missing = [a.name for a in world.attributes if a.name not in strengths]
    if missing:
        raise ValueError(f"no strength for {listed(missing)}; give one for every attribute.")
    on = {a.name: torch.full((1, 1, 1), float(strengths[a.name])) for a in world.attributes}
    pixels = world.draw(on, Draws(torch.tensor([seed]), SIZE))  # (1, 3, SIZE, SIZE)
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())


class PhantomLab(Explorer):
    """Change what a phantom shows, attribute by attribute, and watch the decisions of several methods.

    `PhantomLab({"zero-shot": zero, "ViP": vip})` at the end of a cell shows the widget. Its controls are
    methods, so that a script can do the same: `lab.set("veil", 0)`, then `lab.probabilities()`.

    Args:
        methods: Methods by name, all of one phantom card.
        seed: Of the phantom that is shown first.

    Attributes:
        world: The world that draws.
        strengths: How strongly each attribute is drawn, {name: 0 to 1}.

    Raises:
        ValueError: no method, a card that is not of phantoms, methods of different cards.

    Example:
        >>> import medvlp
        >>> from medvlp.show import PhantomLab
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> lab = PhantomLab({"zero-shot": zero})
        >>> lab.set("veil", 0)
        >>> lab.probabilities().shape
        (2, 2)
    """

    HELP = (
        "Each slider says how strongly an attribute is drawn, from 0 (absent) to 100 (present); everything "
        "else of the image stays. The best rule knows the attributes (from 50 on they count as present), "
        "the methods see pixels. In brackets: the change since the start."
    )

    def __init__(self, methods: Mapping[str, Method], seed: int = 1) -> None:
        """Draw the first phantom; see the class."""
        check_kinds(PhantomLab.__init__, locals())
        if not methods:
            raise ValueError("there is no method to watch; give a dictionary, such as {'zero-shot': method}.")
        self.methods = dict(methods)
        cards = {method.card.name: method.card for method in self.methods.values()}
        if len(cards) > 1:
            raise ValueError(f"the methods are of the cards {', '.join(cards)}; give methods of one card.")
        self.card = next(iter(cards.values()))
        if self.card.source.kind != "phantom":
            raise ValueError(
                f"card {self.card.name!r} is of images that cannot be drawn anew; the phantom lab needs a "
                "phantom card, such as 'phantom-derm'."
            )
        self.world = get_world(self.card.source.world)
        self.another(seed)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {100 * strength:.0f}" for name, strength in self.strengths.items())
        return f"PhantomLab({self.card.name}, seed {self.seed}: {shown})"

    def another(self, seed: int) -> None:
        """Start from another phantom: its class, attributes and everything else drawn from `seed`."""
        latents = self.world.sample(1, seed)
        names, present = [a.name for a in self.world.attributes], latents.attributes[0].tolist()
        self.seed, self.image_seed = seed, int(latents.seeds[0])
        self.true = self.world.classnames[int(latents.labels[0])]
        self.start = dict(zip(names, map(float, present), strict=True))
        self.reset()
        self._before = self._now

    def set(self, attribute: str, strength: float) -> None:
        """Draw an attribute as strongly as this, from 0 (absent) to 1 (present)."""
        strengths = self.strengths | {attribute: float(strength)}
        self._look(strengths)

    def reset(self) -> None:
        """The attributes of the start again."""
        self._look(self.start)

    def probabilities(self) -> pd.DataFrame:
        """P(class) by classname: of the best rule, which knows the attributes, and of every method."""
        present = torch.tensor([[self.strengths[a.name] >= 0.5 for a in self.world.attributes]])  # (1, K)
        best = self.world.posterior(present)[0].numpy()  # (n_cls,) of the world's classes
        table = Table({"best rule": best}, index=pd.Index(self.world.classnames, name="classname"))
        table = table.reindex(self.card.classnames)
        table["best rule"] /= table["best rule"].sum()  # a card may have some of the classes only
        return table.assign(**{name: now.probabilities for name, now in self._now.items()})

    def scores(self) -> pd.DataFrame:
        """Symptom scores now, and their change since the start: method, classname, symptom, score, change."""
        parts = [Table(columns=SCORES)]
        for name, now in self._now.items():
            if now.symptom_scores is not None:
                change = now.symptom_scores["score"] - self._before[name].symptom_scores["score"]
                parts.append(now.symptom_scores.assign(method=name, change=change)[SCORES])
        return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)

    def decisions(self) -> str:
        """In words: what every method decides, and which have changed their mind since the start."""
        words = []
        for name, now in self._now.items():
            before = self._before[name].classname
            moved = "" if now.classname == before else f" (at the start {before})"
            words.append(f"{name}: {now.classname}{moved}")
        return "; ".join(words) + "."

    def static(self) -> Figure:
        """The phantom, and beside it the same with one attribute after another turned over.

        Under each stands every method's probability of the class that the phantom was drawn as.
        """
        panels = {"as it is": self.strengths}
        for name, strength in self.strengths.items():
            title = f"{name} {'removed' if strength >= 0.5 else 'added'}"
            panels[title] = self.strengths | {name: float(strength < 0.5)}
        images = [draw_phantom(self.world, strengths, self.image_seed) for strengths in panels.values()]
        chances = {name: predict(method, images) for name, method in self.methods.items()}
        shown = self.true if self.true in self.card.classnames else self.card.classnames[0]
        fig = show_images(images, list(panels), n=len(panels), columns=5)
        rows, height = fig.axes[0].get_gridspec().nrows, 1.75 + 0.17 * len(self.methods)
        fig.set_figheight(height * rows + 0.4)
        fig.get_layout_engine().set(h_pad=0.08)
        for i, ax in enumerate(fig.axes[: len(panels)]):
            words = "\n".join(f"{name} {of[i].probabilities[shown]:.2f}" for name, of in chances.items())
            ax.text(0.5, -0.03, words, transform=ax.transAxes, ha="center", va="top", fontsize=8)
        fig.suptitle(f"P({shown}) by method, one attribute turned over", fontsize=10)
        return closed(fig)

    def _look(self, strengths: dict[str, float]) -> None:
        """Draw and judge, or, where that fails, leave all as it was."""
        image = draw_phantom(self.world, strengths, self.image_seed)
        self._now = {name: predict(method, image) for name, method in self.methods.items()}
        self.strengths, self.image = dict(strengths), image

    # --- the widget ---

    def _make_box(self) -> list[Any]:
        w = self.widgets
        self._sliders = {a.name: self._attribute_slider(a) for a in self.world.attributes}
        words = {"description": "phantom", "tooltip": "the number of the phantom"}
        seed = w.BoundedIntText(value=self.seed, min=0, max=2**31 - 1, **words)
        self._seed = self._follow(seed, self.another)
        self._reset = self._button("Reset", "the attributes of the start again", self.reset)
        self._picture, self._decided = w.HTML(layout=w.Layout(margin="0 1em 0 0")), w.HTML()
        self._bars = w.HTML()
        left = w.VBox([w.HBox([self._seed, self._reset]), *self._sliders.values()])
        right = w.VBox([self._picture, self._decided], layout=w.Layout(margin="0 0 0 1em", flex="1 1 30em"))
        return [self._wrapped(left, right), self._bars]

    def _attribute_slider(self, attribute: Attribute) -> Any:
        """From absent to present; it acts where it is moved, not where it follows what was set."""

        def slide(change: dict[str, Any]) -> None:
            if round(100 * self.strengths[attribute.name]) != change["new"]:
                self._do(lambda: self.set(attribute.name, change["new"] / 100))

        ends = f"{attribute.absent[0]} (0) to {attribute.present[0]} (100)"
        slider = self._slider(attribute.name, 100, round(100 * self.strengths[attribute.name]), ends)
        slider.step = 10
        slider.observe(slide, names="value")
        return slider

    def _show(self) -> None:
        for name, one in self._sliders.items():
            one.value = round(100 * self.strengths[name])
        self._seed.value = self.seed
        self._picture.value = picture_html(self.image, f"phantom {self.seed}: {self!r}", "14em")
        chances = self.probabilities()
        colours = {name: COLOURS[c % len(COLOURS)] for c, name in enumerate(chances.columns)}
        table = table_html(
            chances.rename_axis("class").reset_index(), colours, f"Probabilities; drawn as {self.true}"
        )
        self._decided.value = f'{table}<div role="status">{literal(self.decisions())}</div>'
        self._bars.value = self._scores_html(colours)

    def _scores_html(self, colours: Mapping[str, str]) -> str:
        """A row a class and symptom; of each method the score as a bar, and beside it its change."""
        scores = self.scores()
        if scores.empty:
            return ""
        axis = min(0.0, scores["score"].min()), max(0.0, scores["score"].max())
        table = scores[["classname", "symptom"]].drop_duplicates()
        for name, rows in scores.groupby("method", sort=False):
            change = [f"({value:+.3f})" for value in rows["change"]]
            rows = rows.assign(change=change)[["classname", "symptom", "score", "change"]]
            rows.columns = ["classname", "symptom", name, f"{name}: change"]
            table = table.merge(rows, how="left")
        bars = {name: colours[name] for name in scores["method"].unique()}
        return table_html(table.rename(columns={"classname": "class"}), bars, "Symptom scores", axis)
