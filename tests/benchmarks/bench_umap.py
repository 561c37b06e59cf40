"""Seconds of a map: 20,000 points of 512 dimensions, and four seeds of it; its figure, numbers and page.

    python -m tests.benchmarks.bench_umap

The points are 20 groups with noise, as far apart as image features of a CLIP are. The first line is the
import of umap and the compilation of a small map, which each process pays once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from medvlp.show.maps.embeddings import Embeddings
from medvlp.show.maps.figure import map_figure
from medvlp.show.maps.page import scatter_page
from medvlp.show.maps.umap import map_points, nearest_points, what_a_map_hides
from tests.benchmarks.timing import Clock, options


def groups(n: int, dim: int) -> Embeddings:
    """n points in 20 groups."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, n)
    vectors = rng.normal(size=(20, dim))[labels] + rng.normal(size=(n, dim))
    points = pd.DataFrame({"what": "image", "modality": "image", "classname": labels.astype(str)})
    return Embeddings(vectors, points.assign(image=pd.NA))


def shown(what: str, call: Callable[[], Any]) -> Any:
    """What the call gives; its seconds are printed."""
    clock = Clock()
    result = call()
    print(f"{what:50} {clock.look():6.1f} s", flush=True)
    return result


def main() -> None:
    args = options(__doc__, points=20_000, dimensions=512).parse_args()
    n, dim = args.points, args.dimensions
    print(f"{n} points of {dim} dimensions, {torch.get_num_threads()} threads")
    shown("import and compilation", lambda: map_points(groups(5000, 16), progress=False))
    embeddings = groups(n, dim)
    shown("nearest neighbours alone", lambda: nearest_points(embeddings.vectors, 15, "cosine", False))
    shown("one map", lambda: map_points(embeddings))
    maps = shown("four seeds", lambda: map_points(embeddings, seed=(1, 2, 3, 4)))
    hidden = shown("what the maps hide", lambda: what_a_map_hides(embeddings, maps))
    shown("figure", lambda: map_figure(maps, hidden).canvas.draw())
    page = shown("page", lambda: scatter_page(maps))
    print(f"page without thumbnails: {len(page.html) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
