"""Text, tables and pictures inside a page of HTML: all text stays text, every picture is inside the page."""

import base64
import hashlib
import io
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image, ImageOps

from medvlp.data.errors import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

LITERAL = "tex2jax_ignore mathjax_ignore"  # classes that MathJax passes over
_DPI = 72  # of the static pictures that a saved notebook keeps
_THUMBNAIL = (320, 320)


def escaped(text: str) -> str:
    """Text as HTML that shows it letter by letter, inside a `literal_block`."""
    return escape(visible(text))


def literal(text: str) -> str:
    """Text as HTML that shows it letter by letter: no markup, no mathematics."""
    return f'<span class="{LITERAL}">{escaped(text)}</span>'


def literal_block(html: str) -> str:
    """HTML whose texts are escaped already, kept from MathJax as a whole."""
    return f'<div class="{LITERAL}">{visible(html)}</div>'


class Table(pd.DataFrame):
    """A table whose text stays text where it is shown.

    In a notebook, MathJax would typeset what stands between the dollar signs of a class name or symptom; in a
    terminal, an escape sequence would be obeyed. What is made of a Table is one, too.
    """

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    def to_string(self, *args: Any, **options: Any) -> str | None:
        """The table as text, as `print` shows it; see `pandas.DataFrame.to_string`."""
        text = super().to_string(*args, **options)
        return text if text is None else visible(text)  # None: it went into a file

    def _repr_html_(self) -> str:
        return literal_block(super()._repr_html_())

    @property
    def style(self) -> "Styler":
        """How the table looks; see `pandas.DataFrame.style`."""
        return super().style.set_table_attributes(f'class="{LITERAL}"')


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file as a URI that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def policy_hash(content: str) -> str:
    """How a page's policy names the one script or style sheet that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """An image as a JPEG file."""
    image.save(file := io.BytesIO(), format="JPEG", quality=quality, optimize=True, progressive=True)
    return file.getvalue()


def small_file(image: Image.Image) -> tuple[str, bytes]:
    """The media type and the bytes of an image as PNG of 128 colours, or as JPEG where that is smaller.

    The first suits a drawing, the second a photograph. MAXCOVERAGE keeps a colour that only few pixels have.
    """
    image = image.convert("RGB")
    drawn = image.quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    drawn.save(file := io.BytesIO(), format="PNG", optimize=True)
    kinds = {"image/png": file.getvalue(), "image/jpeg": jpeg(image, 75)}
    return min(kinds.items(), key=lambda kind: len(kind[1]))


def picture_html(picture: "Image.Image | Figure", alt: str, width: str = "14em") -> str:
    """A picture inside the page, with words for those who do not see it; `width` is a CSS length.

    An image is brought to 320 pixels on its longer side, and a figure has few dots.
    """
    if isinstance(picture, Image.Image):
        source = data_uri("image/jpeg", jpeg(ImageOps.contain(picture, _THUMBNAIL)))
    else:
        picture.savefig(file := io.BytesIO(), format="png", dpi=_DPI, bbox_inches="tight")
        source = data_uri(*small_file(Image.open(file)))
    style = f"width:{width};max-width:100%"
    return f'<img alt="{escaped(alt)}" style="{style}" src="{source}">'
