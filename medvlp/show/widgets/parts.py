"""What the widgets share: pieces of HTML in which all text stays text, and how a notebook shows them.

Class names and symptoms come from cards, models and people. They are escaped, and kept from MathJax, which
would typeset what stands between dollar signs. Colours come from a colour-blind safe palette, or from the
theme of JupyterLab by its CSS variables; none carries a meaning alone.
"""

import base64
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.data.datasets import ImageSet
from medvlp.show.figures.basic import PALETTE
from medvlp.show.figures.html import jpeg, literal

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
COLOURS = PALETTE.as_hex()


def import_widgets() -> Any:
    """The package ipywidgets; ImportError that says how to install it."""
    try:
        import ipywidgets
    except ImportError:
        raise ImportError(
            'the widgets need ipywidgets: pip install "medvlp[notebooks]". '
            "Without it, their methods, tables and static() do the same."
        ) from None
    return ipywidgets


def bar_html(value: float, low: float, high: float, colour: str, hollow: bool = False) -> str:
    """A bar from 0 to `value` on an axis from `low` to `high`, and the number; hollow: it does not count."""
    span = (high - low) or 1.0
    left, right = ((min(max(x, low), high) - low) / span * 100 for x in (min(value, 0.0), max(value, 0.0)))
    fill = f"border:1px dashed {colour}" if hollow else f"background:{colour}"
    axis = "position:relative;flex:1;min-width:5em;height:1.1em;background:var(--jp-layout-color2,#eee)"
    drawn = (
        f"position:absolute;box-sizing:border-box;top:0;bottom:0;"
        f"left:{left:.1f}%;width:{right - left:.1f}%;{fill}"
    )
    number = "width:4em;text-align:right;font-variant-numeric:tabular-nums"
    return (
        '<div style="display:flex;gap:0.6em;align-items:center;color:var(--jp-ui-font-color1,inherit)">'
        f'<div style="{axis}" aria-hidden="true"><div style="{drawn}"></div></div>'
        f'<span style="{number}">{value:.3f}</span></div>'
    )


def table_html(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already; its caption and column names are text."""
    cell = "padding:0.15em 0.8em 0.15em 0;text-align:left;vertical-align:middle"
    head = "".join(f'<th scope="col" style="{cell}">{literal(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value}</td>' for value in row) + "</tr>" for row in rows
    )
    caption = f'<caption style="text-align:left;font-weight:600;padding-bottom:0.2em">{literal(caption)}'
    style = "border-collapse:collapse;color:var(--jp-ui-font-color1,inherit);line-height:1.5"
    return (
        f'<table style="{style}">{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def pixels_of(clip: Clip, images: list[Image.Image]) -> Tensor:
    """Images as the tower reads them: (N, 3, S, S), on its device."""
    return torch.stack([clip.preprocess(image) for image in images]).to(clip.device)


def checked_images(images: ImageSet, method: nn.Module) -> None:
    """Raise ValueError unless the images have the method's classes, in its order."""
    theirs, ours = images.card.classnames, method.card.classnames
    if theirs != ours:
        raise ValueError(
            f"the images have the classes {', '.join(theirs)}, but the method has {', '.join(ours)}; "
            "give images of the method's card."
        )


def checked_index(images: ImageSet, index: int) -> int:
    """The number of an image; ValueError that says which there are."""
    if not 0 <= index < len(images):
        raise ValueError(f"there is no image {index}; the {len(images)} images are counted from 0.")
    return int(index)


class Explorer:
    """A widget over methods that can be called without it, with a picture for a notebook that is only read.

    At the end of a cell it shows its box of controls. The output keeps the picture of `static()` as well:
    that is what is seen where no kernel runs.
    """

    def static(self) -> Figure:
        """What the widget shows now, as a figure."""
        raise NotImplementedError

    def _make_box(self, widgets: Any) -> Any:
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError

    @cached_property
    def box(self) -> Any:
        """The controls as an ipywidgets box, made at the first use; needs the extra `notebooks`."""
        widgets = import_widgets()
        self._message = widgets.HTML()
        box = self._make_box(widgets)
        self._show()
        return widgets.VBox([*box, self._message])

    def _do(self, action: Callable[[], object]) -> bool:
        """Act, show what became of it, or the message of what is wrong; whether it went well."""
        try:
            action()
        except ValueError as error:
            self._message.value = f'<div role="alert">&#10007; {literal(str(error))}</div>'
            self._show()
            return False
        self._message.value = ""
        self._show()
        return True

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = {"text/plain": repr(self), "image/jpeg": base64.b64encode(jpeg(self.static())).decode()}
        try:
            live = self.box._repr_mimebundle_() or {}
        except ImportError:
            live = {}
        return bundle | {kind: data for kind, data in live.items() if kind == WIDGET_VIEW}


class ImageExplorer(Explorer):
    """An explorer of the images of a set, one at a time.

    Attributes:
        images: The set.
        index: The image that is shown; `image` is its picture.
    """

    images: ImageSet
    index: int
    image: Image.Image

    @property
    def true(self) -> str:
        """The class of the image."""
        return self.images.card.classnames[int(self.images.labels[self.index])]

    def _take(self, index: int) -> None:
        self.index = checked_index(self.images, index)
        self.image = self.images.image(self.index)

    def _in_words(self, now: pd.Series, before: pd.Series, else_it_is: str) -> str:
        """The decision in words, from P(class) now and before; `else_it_is` leads to another class."""
        decided, was = now.idxmax(), before.idxmax()
        words = f"Decision: {decided}, probability {now[decided]:.2f}."
        if decided != was:
            words += f" {else_it_is} {was}."
        return f"{words} True class: {self.true}."


def slider(widgets: Any, description: str, most: int, value: int, tooltip: str) -> Any:
    """A slider over whole numbers from 0, with its number beside it to type into."""
    return widgets.IntSlider(
        value=value,
        min=0,
        max=max(most, 0),
        description=description,
        tooltip=tooltip,
        layout=widgets.Layout(width="24em", max_width="100%"),
    )
