"""A map to point at: one self-contained page with thumbnails on hover and a lasso that lists what it caught.

The page asks nothing of the network or of the kernel, so it also works in a saved notebook and as a file. In
a notebook it stands in a frame of its own without rights on the rest of the page, and all text of classes and
symptoms enters it as text. It needs no package: libraries that draw this in a notebook bring a large script
for each page, and would still leave thumbnails and their gallery to be written.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.preprocessing import minmax_scale
from tqdm.auto import tqdm

from medvlp.data.errors import check_kinds, visible
from medvlp.data.files import atomic_write
from medvlp.data.html import data_uri, escaped, jpeg, picture_html, policy_hash
from medvlp.data.image_sets import ImageSet
from medvlp.show.maps.figure import MapStyles, map_figure
from medvlp.show.maps.umap import by_seed, parameters_text

TOLD = ("what", "classname", "text", "method", "stage")  # of a point under the pointer
QUALITY = 80  # of the JPEG that holds all thumbnails


@dataclass(frozen=True)
class ScatterPage:
    """An interactive map; at the end of a notebook cell it shows itself.

    Attributes:
        html: The whole page.
        height: Of its frame in a notebook, in pixels.
    """

    html: str = field(repr=False)
    picture: Figure = field(repr=False)
    height: int = 760

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, whole or not at all, and return its path; OSError where none can be."""
        with atomic_write(path) as part:
            part.write_text(self.html, encoding="utf-8")
        return Path(path)

    def static(self) -> Figure:
        """The same map as a figure, for where no script runs."""
        return self.picture

    def _repr_html_(self) -> str:
        """The page in a frame without rights, and the figure under it, folded."""
        return (
            f'<iframe sandbox="allow-scripts" title="interactive map" srcdoc="{escape(self.html)}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
            "<details><summary>The same map as a picture</summary>"
            f"{picture_html(self.picture, 'the map as a picture', '40em')}</details>"
        )


def scatter_page(
    maps: pd.DataFrame,
    images: ImageSet | None = None,
    colour: str = "classname",
    marker: str = "what",
    title: str = "Map of embeddings",
    max_thumbnails: int = 1000,
    thumbnail: int = 48,
) -> ScatterPage:
    """The first map of `maps` as a page: hover shows a point, a lasso lists points, buttons hide kinds.

    A point is told by what it is, class, text, method and stage, never by an image's id. The page lists the
    rows of `maps` that are chosen, to be copied: `maps.loc[[3, 17]]`. The keyboard does what the mouse does.

    Args:
        maps: What `map_points` gives.
        images: The image set whose numbers are in the column image. The page then holds small copies of its
            images, and says so where its card forbids redistribution.
        colour: A column, as in `map_figure`.
        marker: A column of up to 10 values.
        title: Above the map.
        max_thumbnails: How many images have a thumbnail, at most; the first ones in the map's order.
        thumbnail: Side of a thumbnail in pixels.

    Raises:
        ValueError: an unknown column, too many values for markers, or an image that `images` has not.

    Example:
        >>> import pandas as pd
        >>> from medvlp.show import scatter_page
        >>> maps = pd.DataFrame({"x": [0, 1], "y": [1, 0], "classname": ["a", "b"], "what": "class"})
        >>> maps = maps.assign(n_neighbors=2, min_dist=0.1, metric="cosine", seed=1, image=pd.NA)
        >>> "2 points by UMAP" in scatter_page(maps).html
        True
    """
    check_kinds(scatter_page, locals())
    one = by_seed(maps)[0]
    styles = MapStyles(maps, colour, marker)
    one = styles.in_order(one)
    numbers = [None if pd.isna(i) else int(i) for i in one["image"]]
    shown = sorted({i for i in numbers if i is not None}) if images is not None else []
    if shown and shown[-1] >= len(images):
        raise ValueError(f"a point is of image {shown[-1]}, but there are {len(images)}; give its images.")
    tiles = {i: tile for tile, i in enumerate(shown[:max_thumbnails])}
    places = minmax_scale(one[["x", "y"]].astype(float)).round(4)  # (N, 2), finer than a pixel
    data = styles.codes(one) | {
        "row": one.index.tolist(),
        "x": places[:, 0].tolist(),
        "y": (1 - places[:, 1]).tolist(),
        "columns": [_coded(one[column], column) for column in TOLD if column in one],
        "image": numbers,
        "tile": [tiles.get(i, -1) for i in numbers],
        "sheet": _sheet(images, list(tiles), thumbnail) if tiles else None,
    }
    note = f"{len(one)} points by {parameters_text(one)}. "
    note += "What lies close is alike; distance, area and place mean nothing."
    if tiles and not images.card.redistribution:
        note += " This page holds images whose licence does not allow them to be passed on: do not share it."
    return ScatterPage(_page(title, note, data), map_figure(one, None, colour, marker, title))


def _page(title: str, note: str, data: dict[str, Any]) -> str:
    """The template with its parts; its policy allows this very script, and no request at all."""
    folder = resources.files("medvlp.show.maps")
    script = (folder / "page.js").read_text(encoding="utf-8")
    parts = {
        "SCRIPT_HASH": policy_hash(script),
        "TITLE": escaped(title),
        "NOTE": escaped(note),
        "SCRIPT": script,
        # "<" would end the element that holds the data
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(parts)


def _sheet(images: ImageSet, chosen: Sequence[int], side: int) -> dict[str, Any]:
    """The images side by side on one JPEG, without anything of their files."""
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    bar = tqdm(chosen, desc="thumbnails", unit="image", leave=False, delay=2)
    for tile, i in enumerate(bar):
        small = ImageOps.pad(images.picture(i), (side, side))
        sheet.paste(small, (tile % columns * side, tile // columns * side))
    url = data_uri("image/jpeg", jpeg(sheet, QUALITY))
    return {"url": url, "side": side, "columns": columns, "rows": rows}


def _coded(column: pd.Series, name: str) -> dict[str, Any]:
    """A column as the texts that occur, and which of them each point has; nothing said where it is empty."""
    texts = column.astype(object).map(
        lambda value: "" if pd.isna(value) or value == "" else visible(f"{name}: {value}")
    )
    codes, values = pd.factorize(texts)
    return {"values": values.tolist(), "of": codes.tolist()}
