"""Diagrams of what each lecture is about: `python -m notebooks.diagrams`.

Orange is learned, blue is frozen, white is what flows between them.
"""

from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from medvlp.show import save_figure

LEARNED, FROZEN, DATA = "#ffd9a8", "#cfe3f7", "#ffffff"
COLOURS = {"learned": LEARNED, "frozen": FROZEN, "data": DATA}


def canvas(width: float, height: float, legend: Sequence[str] = tuple(COLOURS)) -> tuple[Figure, Axes]:
    """An empty sheet, measured in inches, with the legend of its colours."""
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    for i, name in enumerate(legend):
        box(ax, 0.65 + 1.15 * i, 0.25, name, COLOURS[name], 1.0, 0.3)
    plt.close(figure)
    return figure, ax


def box(
    ax: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7, height: float = 0.62
) -> None:
    """A box around (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": colour, "edgecolor": "0.3"}
    ax.add_patch(FancyBboxPatch(corner, width, height, linewidth=1, **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.35)


def arrow(ax: Axes, *points: tuple[float, float], text: str = "") -> None:
    """A line through the points with a head at the last; the text stands above its first piece."""
    for start, end in zip(points[:-2], points[1:-1], strict=True):
        ax.plot(*zip(start, end, strict=True), color="0.3", linewidth=1.1)
    head = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=points[-1], xytext=points[-2], arrowprops=head)
    (x0, y0), (x1, y1) = points[:2]
    ax.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.07, text, ha="center", va="bottom", fontsize=8.5)


def row(ax: Axes, x: float, y: float, pieces: Sequence[tuple[str, str, float]]) -> None:
    """A sequence of tokens from x on: each with its text, colour and width."""
    for text, colour, width in pieces:
        box(ax, x + width / 2, y, text, colour, width - 0.06, 0.42)
        x += width


def clip_training() -> Figure:
    """Contrastive training: B images, B captions, two towers, all cosines, the loss of rows and columns."""
    figure, ax = canvas(10.4, 3.4, ("learned", "data"))
    for y, name, tower, feature in (
        (2.85, "$B$ images", "image tower", "$f_1 \\ldots f_B$"),
        (1.55, "$B$ captions", "text tower", "$t_1 \\ldots t_B$"),
    ):
        box(ax, 0.95, y, name, DATA, 1.5)
        arrow(ax, (1.7, y), (2.3, y))
        box(ax, 3.15, y, tower, LEARNED)
        arrow(ax, (4.0, y), (5.6, y), text=feature)
    for i, j in product(range(4), repeat=2):
        colour = "#8f8f8f" if i == j else "#ececec"
        ax.add_patch(Rectangle((5.75 + 0.45 * j, 2.95 - 0.45 * i), 0.42, 0.42, facecolor=colour))
    ax.text(6.65, 1.35, "cosines: pairs that\nbelong together are dark", ha="center", va="top", fontsize=8.5)
    arrow(ax, (7.65, 2.2), (8.2, 2.2))
    box(ax, 9.2, 2.2, "cross-entropy\nof rows and columns", DATA, 1.9, 0.72)
    return figure


def zero_shot() -> Figure:
    """Zero-shot by symptoms: each symptom's cosine with the image, and their mean as the class's logit."""
    figure, ax = canvas(10.4, 3.9, ("frozen", "data"))
    for y, name in ((3.45, "1"), (2.75, "2"), (1.85, "m")):
        box(ax, 1.15, y, f"symptom {name} of class $c$", DATA, 2.0, 0.45)
        arrow(ax, (2.15, y), (2.75, y))
        arrow(ax, (4.35, y), (5.55, y), text=f"$t_{{c{name}}}$")
        arrow(ax, (7.05, y), (7.85, y))
    ax.text(1.15, 2.32, "⋮", ha="center", va="center", fontsize=14)
    box(ax, 3.55, 2.65, "text tower", FROZEN, 1.6, 2.1)
    box(ax, 6.3, 2.65, "cosines\nwith $f$", DATA, 1.5, 2.1)
    box(ax, 8.7, 2.65, "mean,\n× exp(logit scale)", DATA, 1.7, 2.1)
    box(ax, 1.15, 1.0, "image", DATA, 2.0, 0.45)
    arrow(ax, (2.15, 1.0), (2.75, 1.0))
    box(ax, 3.55, 1.0, "image tower", FROZEN, 1.6, 0.5)
    arrow(ax, (4.35, 1.0), (6.3, 1.0), (6.3, 1.6), text="$f$")
    arrow(ax, (8.7, 1.6), (8.7, 0.6))
    ax.text(8.7, 0.4, "logit of class $c$", ha="center", va="center", fontsize=9)
    return figure


def symptom_loop() -> Figure:
    """From a question to a list: the reply is read, phrases are checked, and what fails is asked again."""
    figure, ax = canvas(10.4, 2.9, ("frozen", "data"))
    for x, text, colour in (
        (0.95, "question", DATA),
        (2.75, "LLM", FROZEN),
        (4.55, "read the reply", DATA),
        (6.45, "check phrases", DATA),
        (8.95, "images bear them\nout; a person reviews", DATA),
    ):
        box(ax, x, 1.6, text, colour, 2.1 if x > 8 else 1.4)
    for start, end, text in ((1.65, 2.05, ""), (3.45, 3.85, ""), (5.25, 5.75, ""), (7.15, 7.9, "passed")):
        arrow(ax, (start, 1.6), (end, 1.6), text=text)
    arrow(ax, (4.55, 1.91), (4.55, 2.45), (0.95, 2.45), (0.95, 1.91))
    arrow(ax, (6.45, 1.91), (6.45, 2.45), (4.5, 2.45))
    ax.text(3.0, 2.53, "cannot be read, or rejected: ask again, with the reasons", ha="center", fontsize=8.5)
    return figure


def vip() -> Figure:
    """ViP for one class: symptoms, context prompt, text tower, merge prompt, cosine with the image."""
    figure, ax = canvas(10.4, 4.6)
    for i, y in enumerate((4.15, 3.45, 2.35)):
        name = ("1", "2", "m")[i]
        context = [(f"$v_{k}$", LEARNED, 0.42) for k in range(1, 5)]
        row(ax, 0.15, y, [*context, (f"symptom {name} of class $c$", DATA, 2.0)])
        arrow(ax, (3.85, y), (4.35, y))
        arrow(ax, (5.95, y), (6.65, y), text=f"$T_{{c{name}}}$")
    ax.text(1.9, 2.9, "⋮", ha="center", va="center", fontsize=14)
    ax.text(1.0, 4.47, "context prompt", ha="center", fontsize=8.5)
    box(ax, 5.15, 3.25, "text tower", FROZEN, 1.6, 2.3)
    box(
        ax,
        7.55,
        3.25,
        "merge: attention\nof $g_c$ over the\n$T_{ci}$, plus $g_c$\n\n$g_c,\\;W_q,\\;W_k$",
        LEARNED,
        1.8,
        2.3,
    )
    arrow(ax, (8.45, 3.25), (9.45, 3.25), (9.45, 1.62), text="$t_c$")
    box(ax, 9.45, 1.25, "cosine,\n× exp(logit scale)", DATA, 1.7, 0.72)
    box(ax, 3.0, 1.25, "image", DATA, 1.2)
    arrow(ax, (3.6, 1.25), (4.35, 1.25))
    box(ax, 5.15, 1.25, "image tower", FROZEN, 1.6)
    arrow(ax, (5.95, 1.25), (8.6, 1.25), text="$f$")
    arrow(ax, (9.45, 0.89), (9.45, 0.45))
    ax.text(9.45, 0.25, "logit of class $c$", ha="center", va="center", fontsize=9)
    return figure


def cilmp() -> Figure:
    """CILMP for one class: hidden states, edit on the condition of the image, a block's prompts, cosine."""
    figure, ax = canvas(10.4, 5.4)
    box(ax, 1.0, 4.55, "a sentence\nabout class $c$", DATA)
    arrow(ax, (1.85, 4.55), (2.35, 4.55))
    box(ax, 3.0, 4.55, "LLM", FROZEN, 1.3)
    arrow(ax, (3.65, 4.55), (4.5, 4.55), text="$H_c$")
    box(ax, 5.75, 4.55, "edit first and last rows\n$h' = h + R\\,(\\ldots)$\nof rank $r$", LEARNED, 2.5, 0.9)
    arrow(ax, (7.0, 4.55), (7.75, 4.55), text="$h'$")
    box(ax, 8.6, 4.55, "project: $B\\,A\\,h'$", LEARNED)
    arrow(ax, (8.6, 4.24), (8.6, 3.86), (7.05, 3.86), (7.05, 3.5))
    tokens = [("ctx", LEARNED, 0.9), ("rows of $c$", LEARNED, 1.4), ("name . [EOS]", DATA, 1.4)]
    row(ax, 5.45, 3.28, tokens)
    arrow(ax, (7.3, 3.07), (7.3, 2.75))
    box(ax, 7.3, 2.45, "text tower: prompts replaced\nbefore each block", FROZEN, 3.7, 0.6)
    arrow(ax, (9.15, 2.45), (9.55, 2.45), (9.55, 1.62), text="$t_c(f)$")
    box(ax, 9.45, 1.25, "cosine,\n× exp(logit scale)", DATA, 1.7, 0.72)
    row(ax, 0.15, 1.25, [("image patches", DATA, 1.4), ("prompts", LEARNED, 0.95)])
    arrow(ax, (2.5, 1.25), (2.9, 1.25))
    box(ax, 4.2, 1.25, "image tower: prompts\nreplaced before each block", FROZEN, 2.5, 0.72)
    arrow(ax, (5.45, 1.25), (8.6, 1.25), text="$f$")
    arrow(ax, (5.0, 1.61), (5.0, 4.1))
    ax.text(4.92, 2.8, "$f$ is the condition", ha="right", va="center", fontsize=8.5)
    arrow(ax, (9.45, 0.89), (9.45, 0.45))
    ax.text(9.45, 0.25, "logit of class $c$", ha="center", va="center", fontsize=9)
    return figure


def study() -> Figure:
    """An ablation: a grid, its runs, their predictions of the same images, and two intervals."""
    figure, ax = canvas(10.4, 2.9, ("learned", "data"))
    box(ax, 1.0, 1.75, "grid:\nmethod × shots\n× seed", DATA, 1.6, 1.0)
    arrow(ax, (1.8, 1.75), (2.4, 1.75))
    for k in range(3):
        box(ax, 3.15, 2.45 - 0.7 * k, f"run, seed {k + 1}", LEARNED, 1.4, 0.5)
        arrow(ax, (3.85, 2.45 - 0.7 * k), (4.55, 2.45 - 0.7 * k))
    box(ax, 5.5, 1.75, "store: what each\nrun says of the\nsame test images", DATA, 1.8, 1.9)
    for y, text in (
        (2.3, "over runs: would other\nseeds say the same?"),
        (1.2, "over images: would other\nimages say the same?"),
    ):
        arrow(ax, (6.4, y), (7.4, y))
        box(ax, 8.75, y, text, DATA, 2.6, 0.72)
    return figure


def counterfactual_test() -> Figure:
    """One attribute turned round: two images that differ in it alone, and what each symptom's score does."""
    figure, ax = canvas(10.4, 2.9, ("frozen", "data"))
    for y, name in ((2.35, "attributes\nas drawn"), (1.25, "one of them\nturned round")):
        box(ax, 0.95, y, name, DATA, 1.5, 0.72)
        arrow(ax, (1.7, y), (2.3, y))
        box(ax, 3.0, y, "image", DATA, 1.3)
        arrow(ax, (3.65, y), (4.3, y))
        arrow(ax, (5.6, y), (6.9, y), text="scores")
    box(ax, 4.95, 1.8, "CLIP and\nsymptoms", FROZEN, 1.3, 1.7)
    box(ax, 7.6, 1.8, "difference", DATA, 1.3, 1.7)
    arrow(ax, (8.25, 1.8), (8.5, 1.8))
    ax.text(
        8.55, 1.8, "symptoms that name it\nmove, the others stay:\na true reason", va="center", fontsize=8.5
    )
    return figure


def map_and_measures() -> Figure:
    """A map keeps neighbours; distances, spread and angles are measured where the points come from."""
    figure, ax = canvas(10.4, 2.9, ())
    box(ax, 1.2, 1.75, "images, symptoms,\nclasses, prompts", DATA, 2.0, 0.9)
    arrow(ax, (2.2, 1.75), (2.7, 1.75))
    box(ax, 3.6, 1.75, "$D$ numbers each", DATA, 1.7)
    arrow(ax, (4.45, 1.9), (4.8, 1.9), (4.8, 2.4), (5.2, 2.4))
    box(ax, 6.2, 2.4, "UMAP keeps\nneighbours", DATA, 1.9)
    arrow(ax, (7.15, 2.4), (7.7, 2.4))
    box(ax, 8.9, 2.4, "two numbers each:\na map, of each seed", DATA, 2.3)
    arrow(ax, (4.45, 1.6), (4.8, 1.6), (4.8, 1.1), (7.7, 1.1))
    box(ax, 8.9, 1.1, "gap, spread, silhouette:\nwhat the map hides", DATA, 2.3)
    return figure


DIAGRAMS = {
    "diagram_clip": clip_training,
    "diagram_zero_shot": zero_shot,
    "diagram_symptoms": symptom_loop,
    "diagram_vip": vip,
    "diagram_cilmp": cilmp,
    "diagram_study": study,
    "diagram_counterfactual": counterfactual_test,
    "diagram_map": map_and_measures,
}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        save_figure(draw(), name, "python -m notebooks.diagrams")
