"""Maps of embeddings by UMAP, beside what they hide: the same measures in the original space."""

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import trustworthiness
from sklearn.metrics import pairwise_distances, silhouette_score
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from medvlp.data.errors import check_choice, check_columns, check_kinds
from medvlp.data.html import Table
from medvlp.show.maps.embeddings import Embeddings, modality_gap

METRICS = ("cosine", "euclidean")
PARAMETERS = ["n_neighbors", "min_dist", "metric", "seed"]
_ROWS = 1000  # points whose neighbours are looked for at once
_LEAST = 5  # points of the smallest map
_MEASURED, _NEIGHBOURS = 2000, 15  # points that `what_a_map_hides` looks at, at most, and neighbours of each
GAP = "gap "  # how the rows of modality gaps begin


def map_points(
    embeddings: Embeddings,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    metric: str = "cosine",
    seed: int | Sequence[int] = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """A map of the points in two dimensions by UMAP, of one seed or of several.

    UMAP is McInnes, Healy & Melville 2018 (arXiv 1802.03426), package umap-learn. The nearest neighbours that
    it starts from are exact here, and found once for all seeds. One seed gives the same map on one machine.

    Args:
        embeddings: What is to be seen together; at least 5 points.
        n_neighbors: How many points count as near, with the point itself. Few show fine detail, many the
            large shape. All points where there are fewer.
        min_dist: How close points may lie in the map; a matter of looks.
        metric: Of the original space, "cosine" or "euclidean".
        seed: Of the start and of the sampling; several give one map each, one below the other.
        progress: Show bars over two seconds.

    Returns:
        The points' columns and x, y, n_neighbors, min_dist, metric and seed, N rows for each seed.

    Raises:
        ValueError: too few points, an unknown metric, n_neighbors below 2, or no seed.
        ImportError: umap-learn is not installed.

    Example:
        >>> import medvlp
        >>> from medvlp.show import map_points, symptom_points
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> maps = map_points(symptom_points(zero), n_neighbors=5)
        >>> maps[["x", "y"]].shape
        (16, 2)
    """
    check_kinds(map_points, locals())
    if len(embeddings) < _LEAST:
        raise ValueError(f"a map needs at least {_LEAST} points, got {len(embeddings)}.")
    check_choice("metric", metric, METRICS)
    if n_neighbors < 2:
        raise ValueError(f"n_neighbors must be at least 2, got {n_neighbors}.")
    seeds = [int(seed)] if np.ndim(seed) == 0 else [int(s) for s in seed]
    if not seeds:
        raise ValueError("there is no seed; give one number, or several.")
    k = min(n_neighbors, len(embeddings) - 1)
    X = _ready(embeddings.vectors, metric)  # (N, D)
    nearest = nearest_points(X, k, metric, progress)
    maps, parameters = [], {"n_neighbors": k, "min_dist": min_dist, "metric": metric}
    shown = progress and "umap" not in sys.modules  # later maps show UMAP's own bar, where they take long
    for s in tqdm(seeds, "maps: the first waits for numba", unit="map", leave=False, disable=not shown):
        xy = _umap(X, nearest, parameters, s, progress)  # (N, 2)
        maps.append(embeddings.points.assign(x=xy[:, 0], y=xy[:, 1], **parameters, seed=s))
    return pd.concat(maps, ignore_index=True)


def what_a_map_hides(embeddings: Embeddings, maps: pd.DataFrame, labels: str = "classname") -> pd.DataFrame:
    """Measures of the original space beside the same of its map: what the eye may not conclude.

    One row a measure, with the columns original, map (of the first seed), lowest and highest (of all seeds):

    - silhouette of `labels`, from -1 to 1: is a point nearer to its own class than to the next one?
      (Rousseeuw 1987)
    - between / within classes: mean distance of points of two classes over that of one class; 1 says that
      classes mean nothing;
    - trustworthiness, from 0 to 1: are a point's 15 neighbours in the map neighbours in the original space?
      (Venna & Kaski 2001)
    - where there are several modalities, the silhouette of the modality, and the gap between each pair of
      them (`modality_gap`; it cannot be measured in a map).

    UMAP keeps neither distances nor sizes: where the map's numbers differ from the original's, in either
    direction, the map misleads. Of more than 2,000 points so many are measured, always the same ones.

    Args:
        embeddings: What was mapped.
        maps: What `map_points` made of it.
        labels: The column of classes; points without one are left out of the first two measures.

    Raises:
        ValueError: maps of other embeddings, or an unknown column.

    Example:
        >>> import medvlp
        >>> from medvlp.show import symptom_points, what_a_map_hides
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> points = symptom_points(zero)
        >>> maps = points.points.assign(x=range(16), y=0, metric="cosine", seed=1)  # as `map_points` gives it
        >>> list(what_a_map_hides(points, maps).index)
        ['silhouette of classname', 'between / within classname', 'trustworthiness of 7 neighbours']
    """
    check_kinds(what_a_map_hides, locals())
    check_choice("column", labels, embeddings.points.columns, "the points")
    each = by_seed(maps)
    if any(len(one) != len(embeddings) for one in each):
        raise ValueError(
            f"the maps are of {len(each[0])} points, the embeddings are {len(embeddings)}; "
            "give the embeddings that were mapped."
        )
    n = len(embeddings)
    rows = np.sort(np.random.default_rng(0).permutation(n)[:_MEASURED])  # (n_sample,)
    points = embeddings.points.iloc[rows]
    metric = str(maps["metric"].iloc[0])
    X = _ready(embeddings.vectors[rows], metric).astype(np.float64)  # (n_sample, D)
    original = _distances(X, metric)  # (n_sample, n_sample)
    plane = [one[["x", "y"]].to_numpy(float)[rows] for one in each]  # (n_sample, 2) each
    flat = [_distances(xy, "euclidean") for xy in plane]

    k = min(_NEIGHBOURS, (len(rows) - 1) // 2)
    trust = [trustworthiness(original, xy, n_neighbors=k, metric="precomputed") for xy in plane]
    measures = {  # each in the original space, then in the map of each seed
        f"silhouette of {labels}": [_silhouette(d, points[labels]) for d in (original, *flat)],
        f"between / within {labels}": [_between_within(d, points[labels]) for d in (original, *flat)],
        f"trustworthiness of {k} neighbours": [np.nan, *trust],
    }
    if points["modality"].nunique() > 1:
        measures["silhouette of modality"] = [_silhouette(d, points["modality"]) for d in (original, *flat)]
        for gap in modality_gap(embeddings).itertuples():
            measures[f"{GAP}{gap.first} to {gap.second}"] = [gap.gap, np.nan]
    table = {name: (first, drawn[0], min(drawn), max(drawn)) for name, (first, *drawn) in measures.items()}
    columns = ["original", "map", "lowest", "highest"]
    return Table.from_dict(table, orient="index", columns=columns, dtype=float).rename_axis("measure")


def _ready(vectors: np.ndarray, metric: str) -> np.ndarray:
    """The vectors, of length 1 where only their direction counts: then Euclidean neighbours are cosine's."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors


def nearest_points(X: np.ndarray, k: int, metric: str, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each of N points the k nearest, itself first: their numbers and distances, exact, (N, k) each."""
    X = _ready(X, metric)  # (N, D)
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X)
    starts = range(0, len(X), _ROWS)
    bar = tqdm(starts, desc="neighbours", unit="part", leave=False, delay=2, disable=not progress)
    parts = [index.kneighbors(X[start : start + _ROWS]) for start in bar]
    distances, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    distances = distances.astype(np.float32)
    if metric == "cosine":
        distances = distances**2 / 2  # |a - b|^2 = 2 - 2 cos for unit vectors
    return numbers, distances


def _umap(
    X: np.ndarray, nearest: tuple[np.ndarray, np.ndarray], parameters: dict, seed: int, progress: bool
) -> np.ndarray:
    """UMAP's map of X (N, D), (N, 2)."""
    threads = torch.get_num_threads()
    try:
        from umap import UMAP  # seconds: numba compiles
    except ImportError:
        raise ImportError('maps need umap-learn: pip install "medvlp[umap]".') from None
    bar = {"desc": f"UMAP, seed {seed}", "delay": 2, "leave": False, "disable": not progress}
    reducer = UMAP(
        **parameters,
        disconnection_distance=np.inf,  # or a point that is opposite to all others gets no place
        random_state=seed,
        n_jobs=1,  # what a seed comes down to, said before UMAP warns of it
        precomputed_knn=tuple(part.copy() for part in nearest),  # UMAP writes into them
        tqdm_kwds=bar,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\]")  # new points are never added to this map
        try:
            return reducer.fit_transform(X)
        finally:
            torch.set_num_threads(threads)  # numba gives all cores to the OpenMP that torch runs on, too


def _distances(X: np.ndarray, metric: str) -> np.ndarray:
    """Pairwise distances, (n, n), exactly zero from a point to itself."""
    distances = pairwise_distances(X, metric=metric)
    np.fill_diagonal(distances, 0.0)
    return distances


def _labelled(distances: np.ndarray, labels: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, n) of the points that have a label, and their labels as numbers (n,)."""
    known = labels.notna().to_numpy()
    return distances[np.ix_(known, known)], pd.factorize(labels[known])[0]


def _silhouette(distances: np.ndarray, labels: pd.Series) -> float:
    """Mean silhouette by distances (n, n); NaN where there are not at least two groups, one of two points."""
    distances, codes = _labelled(distances, labels)
    if not 1 < len(np.unique(codes)) < len(codes):
        return np.nan
    return float(silhouette_score(distances, codes, metric="precomputed"))


def _between_within(distances: np.ndarray, labels: pd.Series) -> float:
    """Mean distance between points of different labels over that of the same; NaN if one is missing."""
    distances, codes = _labelled(distances, labels)
    first, second = np.triu_indices(len(codes), k=1)  # (pairs,) each
    pairs, same = distances[first, second], codes[first] == codes[second]
    if same.all() or not same.any() or pairs[same].mean() == 0:
        return np.nan
    return float(pairs[~same].mean() / pairs[same].mean())


def parameters_text(one: pd.DataFrame) -> str:
    """How a map was made, in words."""
    check_columns(one, PARAMETERS, "map_points")
    return "UMAP: " + ", ".join(f"{name} {one.iloc[0][name]}" for name in PARAMETERS)


def by_seed(maps: pd.DataFrame) -> list[pd.DataFrame]:
    """One map a seed, in their order."""
    check_columns(maps, ["x", "y", *PARAMETERS[2:]], "map_points")
    return [one for _, one in maps.groupby("seed", sort=False)]
