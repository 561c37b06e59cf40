"""Text and pictures inside a page of HTML: all text stays text, every picture is inside the page."""

import base64
import hashlib
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


def policy_hash(content: str) -> str:
    """How a page's policy names the one script or style sheet that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def jpeg(picture: Image.Image | Figure, quality: int = 95) -> bytes:
    """A figure or an image as a JPEG file; a figure's has few dots."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, format="jpeg", dpi=_DPI, bbox_inches="tight", pil_kwargs={"quality": 75})
    else:
        picture.save(file, format="JPEG", quality=quality)
    return file.getvalue()


def picture_html(picture: Image.Image | Figure, alt: str, width: str = "14em") -> str:
    """A picture inside the page, with words for those who do not see it; `width` is a CSS length.

    An image is brought to 320 pixels on its longer side.
    """
    if isinstance(picture, Image.Image):
        picture = ImageOps.contain(picture, _THUMBNAIL)
    style = f"width:{width};max-width:100%"
    source = data_uri("image/jpeg", jpeg(picture))
    return f'<img alt="{escape(alt)}" style="{style}" src="{source}">'
