"""What the widgets share: tables with bars in which all text stays text, and how a notebook shows a widget.

Class names and symptoms come from cards, models and people. They are escaped, and kept from MathJax, which
would typeset what stands between dollar signs. Colours come from a colour-blind safe palette, or from the
theme of JupyterLab by its CSS variables; none carries a meaning alone.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor

from medvlp.backbone.features import image_features
from medvlp.data.datasets import ImageSet
from medvlp.data.html import escaped, literal, literal_block, picture_html
from medvlp.methods.base import Method
from medvlp.show.explanations.scores import feature_of
from medvlp.show.figures.basic import PALETTE
from medvlp.study.evaluation import evaluating

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
COLOURS = PALETTE.as_hex()
_TABLE = "color:var(--jp-ui-font-color1,inherit);border-spacing:0.8em 0;text-align:left;line-height:1.5"


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


def table_html(
    table: pd.DataFrame,
    bars: Mapping[Any, str],
    caption: str = "",
    axis: tuple[float, float] = (0.0, 1.0),
    header: bool = True,
) -> str:
    """A table as HTML, all its text escaped, with bars behind the numbers of some columns.

    Args:
        table: Text, and numbers that are shown with three decimals. The index is not shown.
        bars: The colour by what it is for: a column, or (column, rows).
        caption: Above the table.
        axis: From where to where a bar can reach; it begins at 0.
        header: Whether the columns' names are shown.
    """
    style = table.style.hide(axis="index").format(precision=3, na_rep="", escape="html")
    style.format_index(axis="columns", escape="html").set_table_attributes(f'style="{_TABLE}"')
    for where, colour in bars.items():
        column, rows = where if isinstance(where, tuple) else (where, table.index)
        style.bar(
            subset=(list(rows), [column]),
            color=colour,
            align="mid",
            vmin=axis[0],
            vmax=axis[1],
            width=65,  # per cent; the number stands beside the bar, where it can be read
            height=60,
            props="min-width:9em;height:28px;padding:2px;text-align:right;",
        )
    if caption:
        style.set_caption(escaped(caption))
    if not header:
        style.hide(axis="columns")
    return literal_block(style.to_html())


class Controls:
    """A box of labelled controls. Each acts, and then the box shows what is now and what there is to say.

    A subclass makes the controls, from top to bottom, in `_make_box`, and brings them in line with what is
    now in `_show`.
    """

    HELP = ""  # what the controls do, above them

    @cached_property
    def box(self) -> Any:
        """The controls as an ipywidgets box, made at the first use; needs the extra `notebooks`."""
        self.widgets = import_widgets()
        self.message = self.widgets.HTML()
        controls = self._make_box()
        self._show()
        return self.widgets.VBox([self.widgets.HTML(f"<p>{literal(self.HELP)}</p>"), *controls, self.message])

    def _do(self, action: Callable[[], str | None]) -> None:
        """Act, show what became of it, and say what the action returns.

        An error is an alert, with which a screen reader interrupts.
        """
        try:
            words, role, mark = action(), "status", ""
        except (ValueError, OSError) as error:
            words, role, mark = str(error), "alert", "&#10007; "
        self._show()
        self.message.value = f'<div role="{role}">{mark}{literal(words)}</div>' if words else ""

    def _follow(self, control: Any, action: Callable[[Any], str | None]) -> Any:
        """The control, on each of whose new values the action is done."""
        control.observe(lambda change: self._do(lambda: action(change["new"])), names="value")
        return control

    def _button(self, description: str, tooltip: str, action: Callable[[], str | None]) -> Any:
        button = self.widgets.Button(description=description, tooltip=tooltip)
        button.on_click(lambda _: self._do(action))
        return button

    def _field(self, description: str, tooltip: str, width: str = "22em") -> Any:
        """A field of text, sent whole: letter by letter, the press of a button may overtake the last."""
        layout = self.widgets.Layout(width=width, max_width="85%")
        words = {"description": description, "tooltip": tooltip}
        return self.widgets.Text(**words, layout=layout, continuous_update=False)

    def _slider(self, description: str, most: int, value: int, tooltip: str) -> Any:
        """A slider over whole numbers from 0, with its number beside it to type into."""
        words = {"description": description, "tooltip": tooltip}
        layout = self.widgets.Layout(width="24em", max_width="100%")
        return self.widgets.IntSlider(value, 0, max(most, 0), **words, layout=layout)

    def _wrapped(self, *children: Any, **layout: str) -> Any:
        """The widgets side by side, and below each other where the page is narrow."""
        return self.widgets.Box(children, layout=self.widgets.Layout(flex_flow="row wrap", **layout))


class Explorer(Controls):
    """A widget over methods that can be called without it, with a picture for a notebook that is only read.

    At the end of a cell it shows its box of controls. The output keeps the picture of `static()` as well, the
    figure that a subclass draws of what is shown now: that is what is seen where no kernel runs.
    """

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        from IPython.core.pylabtools import retina_figure  # only a notebook asks for this

        picture, size = retina_figure(self.static(), base64=True, dpi=150)
        bundle = {"text/plain": repr(self), "image/png": picture}
        try:
            live = self.box._repr_mimebundle_() or {}
        except ImportError:
            live = {}
        live = {kind: data for kind, data in live.items() if kind == WIDGET_VIEW}
        return bundle | live, {"image/png": size}


class ImageExplorer(Explorer):
    """An explorer of the images of a set, one at a time, by a method of the same card.

    A subclass looks at another image in `choose(index)`, where it begins with `_take(index)`.

    Attributes:
        images: The set.
        index: The image that is shown; `image` is its picture, a grey square where that is not here.
    """

    images: ImageSet
    index: int
    image: Image.Image

    @property
    def true(self) -> str:
        """The class of the image."""
        return self.images.card.classnames[int(self.images.labels[self.index])]

    def _take(self, index: int) -> None:
        if not 0 <= index < len(self.images):
            raise ValueError(f"there is no image {index}; the {len(self.images)} images are counted from 0.")
        self.index = int(index)
        self.image = self.images.picture(self.index)

    def _feature(self, method: Method) -> Tensor:
        """The feature of the image as the method sees it, (1, D); the shipped one without a picture."""
        if self.images.pictures_missing and method.keeps_image_tower:
            shipped = image_features(method.clip, self.images.subset([self.index])).features
            return shipped.to(method.clip.device)
        with evaluating(method):
            return feature_of(method, self.images.image(self.index))

    def _in_words(self, now: pd.Series, before: pd.Series, else_it_is: str) -> str:
        """The decision in words, from P(class) now and before; `else_it_is` leads to another class."""
        decided, was = now.idxmax(), before.idxmax()
        words = f"Decision: {decided}, probability {now[decided]:.2f}."
        if decided != was:
            words += f" {else_it_is} {was}."
        return f"{words} True class: {self.true}."

    def _make_image(self) -> None:
        """The slider that chooses the image, and the place of its picture."""
        slider = self._slider("image", len(self.images) - 1, self.index, "which image: arrow keys, or drag")
        self._index = self._follow(slider, self.choose)
        self._picture = self.widgets.HTML(layout=self.widgets.Layout(margin="0 1em 0 0"))

    def _show_image(self) -> None:
        self._index.value = self.index
        missing = ", which is not here" if self.images.pictures_missing else ""
        words = f"image {self.index} of {self.images.card.name}{missing}"
        noted = self.images.described(self.index)
        self._picture.value = picture_html(self.image, words) + (f"<p>{literal(noted)}</p>" if noted else "")
