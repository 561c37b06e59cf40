"""Text and pictures inside a page of HTML: all text stays text, every picture is inside the page."""

import base64
import io
from html import escape

from matplotlib.figure import Figure
from PIL import Image, ImageOps

LITERAL = "tex2jax_ignore mathjax_ignore"  # classes that MathJax passes over
_DPI = 72  # of the static pictures that a saved notebook keeps
_THUMBNAIL = (320, 320)


def literal(text: str) -> str:
    """Text as HTML that shows it letter by letter: no markup, no mathematics."""
    return f'<span class="{LITERAL}">{escape(text)}</span>'


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file as a URI that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(picture: Image.Image | Figure) -> bytes:
    """A figure, or an image brought to 320 pixels on its longer side, as a JPEG file."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, format="jpeg", dpi=_DPI, bbox_inches="tight", pil_kwargs={"quality": 75})
    else:
        ImageOps.contain(picture, _THUMBNAIL).save(file, format="JPEG", quality=95)
    return file.getvalue()


def picture_html(picture: Image.Image | Figure, alt: str, width: str = "14em") -> str:
    """A picture inside the page, with words for those who do not see it; `width` is a CSS length."""
    style = f"width:{width};max-width:100%"
    source = data_uri("image/jpeg", jpeg(picture))
    return f'<img alt="{escape(alt)}" style="{style}" src="{source}">'
