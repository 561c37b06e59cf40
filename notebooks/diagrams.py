"""Diagrams of the two methods, from image and words to logits: `python -m notebooks.diagrams`.

Orange is learned, blue is frozen, white is what flows between them.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from medvlp.show import save_figure

LEARNED, FROZEN, DATA = "#ffd9a8", "#cfe3f7", "#ffffff"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty sheet, measured in inches, with the legend of colours."""
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    for i, (name, colour) in enumerate({"learned": LEARNED, "frozen": FROZEN, "data": DATA}.items()):
        box(ax, 0.65 + 1.15 * i, 0.25, name, colour, 1.0, 0.3)
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


if __name__ == "__main__":
    for name, draw in {"diagram_vip": vip, "diagram_cilmp": cilmp}.items():
        save_figure(draw(), name, "python -m notebooks.diagrams")
