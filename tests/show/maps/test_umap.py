"""Maps: near stays near, one seed gives one map, and the numbers beside it against sums written out here."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from sklearn.metrics import silhouette_score

from medvlp.show import Embeddings, map_figure, map_points, save_figure, scatter_page, what_a_map_hides
from medvlp.show.figures.basic import PALETTE
from medvlp.show.maps.figure import hidden_text
from medvlp.show.maps.umap import nearest_points

# not importorskip: numba compiles when umap is imported, and every worker collects these tests
pytestmark = pytest.mark.skipif(find_spec("umap") is None, reason="pip install 'medvlp[umap]'")


def blobs(n: int = 30, n_cls: int = 3, dim: int = 8, text: int = 0) -> Embeddings:
    """n points of each class around its own corner; the first `text` points are texts, far from the rest."""
    rng = np.random.default_rng(5)
    labels = np.tile(np.arange(n_cls), n)
    vectors = rng.normal(0, 0.25, size=(n * n_cls, dim))
    vectors[np.arange(len(labels)), labels] += 2
    vectors[:text, -1] += 9
    names = pd.Categorical.from_codes(labels, ["zoster", "acne", "wart"][:n_cls])
    what = ["class"] * text + ["image"] * (len(labels) - text)
    points = pd.DataFrame({"method": "CLIP", "stage": "", "what": what, "classname": names, "text": ""})
    points["modality"] = np.where(points["what"] == "class", "text", "image")
    return Embeddings(vectors, points)


@pytest.fixture(scope="module")
def maps():
    return map_points(blobs(text=4), n_neighbors=8, seed=(1, 2, 3, 4), progress=False)


def test_a_map_keeps_the_points_and_says_how_it_was_made(maps):
    points = blobs(text=4).points
    assert maps["seed"].value_counts(sort=False).to_dict() == {1: 90, 2: 90, 3: 90, 4: 90}
    pd.testing.assert_frame_equal(maps[:90][points.columns], points)
    assert (maps["n_neighbors"] == 8).all() and (maps["min_dist"] == 0.1).all()
    assert set(maps["metric"]) == {"cosine"} and maps["classname"].cat.categories[0] == "zoster"


def test_a_seed_gives_one_map_and_another_seed_another(maps):
    alone = map_points(blobs(text=4), n_neighbors=8, seed=3, progress=False)
    xy = maps.set_index("seed")[["x", "y"]]
    np.testing.assert_array_equal(alone[["x", "y"]].to_numpy(), xy.loc[3].to_numpy())
    assert not np.allclose(xy.loc[1], xy.loc[2], atol=0.1)


@pytest.mark.usefixtures("maps")  # importing UMAP itself, once, tells that TensorFlow is not there
def test_nothing_is_warned_about_and_the_vectors_stay(recwarn):
    embeddings = blobs(4)
    before = embeddings.vectors.copy()
    small = map_points(embeddings, n_neighbors=50, metric="euclidean", progress=False)  # more than there are
    assert (small["n_neighbors"] == 11).all() and np.isfinite(small[["x", "y"]]).all(axis=None)
    assert not recwarn.list
    np.testing.assert_array_equal(embeddings.vectors, before)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_the_exact_ones(metric):
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    numbers, distances = nearest_points(X, 7, metric, progress=False)
    if metric == "cosine":
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        wanted = 1 - unit @ unit.T
    else:
        wanted = np.sqrt(((X[:, None] - X) ** 2).sum(axis=-1))
    np.testing.assert_array_equal(numbers, np.argsort(wanted, axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(wanted, axis=1)[:, :7], atol=1e-5)
    assert (numbers[:, 0] == np.arange(40)).all()


def test_what_is_hidden_is_measured_in_the_original_space(maps):
    embeddings = blobs(text=4)
    hidden = what_a_map_hides(embeddings, maps)
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)
    names = embeddings.points["classname"].astype(str)
    row = hidden.loc["silhouette of classname"]
    assert row["original"] == pytest.approx(silhouette_score(unit, names, metric="cosine"), abs=1e-5)
    of_seed = [silhouette_score(one[["x", "y"]], names) for _, one in maps.groupby("seed")]
    assert row["map"] == pytest.approx(of_seed[0])
    assert (row["lowest"], row["highest"]) == pytest.approx((min(of_seed), max(of_seed)))

    far = 1 - unit @ unit.T
    pairs = [(far[i, j], names[i] == names[j]) for i in range(90) for j in range(i)]
    between = np.mean([d for d, same in pairs if not same])
    within = np.mean([d for d, same in pairs if same])
    assert hidden.loc["between / within classname", "original"] == pytest.approx(between / within, abs=1e-4)

    trust = hidden.loc["trustworthiness of 15 neighbours"]
    assert np.isnan(trust["original"]) and 0.8 < trust["lowest"] <= trust["map"] <= trust["highest"] <= 1
    assert hidden.loc["gap image to text", "original"] > 0.5
    apart = silhouette_score(unit, embeddings.points["modality"], metric="cosine")
    assert hidden.loc["silhouette of modality", "original"] == pytest.approx(apart, abs=1e-5)
    pd.testing.assert_frame_equal(hidden, what_a_map_hides(embeddings, maps))


def test_trustworthiness_falls_when_the_map_is_shuffled(maps):
    embeddings = blobs(text=4)
    shuffled = maps.copy()
    shuffled[["x", "y"]] = maps[["x", "y"]].sample(frac=1, random_state=0).to_numpy()
    row = "trustworthiness of 15 neighbours"
    honest = what_a_map_hides(embeddings, maps).loc[row, "lowest"]
    assert what_a_map_hides(embeddings, shuffled).loc[row, "highest"] < 0.7 < honest


def test_one_modality_has_no_gap_and_missing_labels_are_left_out():
    embeddings = blobs(10)
    one = embeddings.points.assign(x=embeddings.vectors[:, 0], y=embeddings.vectors[:, 1], seed=1)
    one["metric"] = "cosine"
    hidden = what_a_map_hides(embeddings, one)
    assert not [measure for measure in hidden.index if "modality" in measure or "gap" in measure]
    some = embeddings.points.copy()
    some.loc[some["classname"] == "wart", "classname"] = np.nan
    partly = what_a_map_hides(Embeddings(embeddings.vectors, some), one)
    rest = (some["classname"].notna()).to_numpy()
    unit = embeddings.vectors[rest] / np.linalg.norm(embeddings.vectors[rest], axis=1, keepdims=True)
    wanted = silhouette_score(unit, some["classname"][rest].astype(str), metric="cosine")
    assert partly.loc["silhouette of classname", "original"] == pytest.approx(wanted, abs=1e-5)
    none = what_a_map_hides(Embeddings(embeddings.vectors, some.assign(classname="one")), one)
    assert none.loc[["silhouette of classname", "between / within classname"]].isna().all(axis=None)


def test_the_figure_shows_four_seeds_the_parameters_and_what_is_hidden(maps):
    hidden = what_a_map_hides(blobs(text=4), maps)
    fig = map_figure(maps, hidden, title="a price of $5 and $6")
    main, *small, below = fig.axes
    assert main.get_xlabel() == "UMAP: n_neighbors 8, min_dist 0.1, metric cosine, seed 1"
    assert [ax.get_xlabel() for ax in small] == ["seed 2", "seed 3", "seed 4"]
    for ax, seed in zip((main, *small), (1, 2, 3, 4), strict=True):
        drawn = np.concatenate([points.get_offsets() for points in ax.collections])
        wanted = maps[maps["seed"] == seed][["x", "y"]].to_numpy()
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(wanted, axis=0))
        assert len(ax.get_xticks()) == 0
    assert hidden_text(hidden) in below.texts[0].get_text()
    assert "distance between two modalities" in hidden_text(hidden)
    hidden.iloc[0, 0] = 143948552.466
    assert "1.4e+08" in hidden_text(hidden) and "143948552" not in hidden_text(hidden)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["classname", "zoster", "acne", "wart", "what", "class", "image"]
    colours = [handle.get_markerfacecolor() for handle in fig.legends[0].legend_handles[1:4]]
    assert [to_rgb(colour) for colour in colours] == PALETTE[:3]


def test_the_few_lie_on_top_of_the_many(maps):
    main = map_figure(maps, None).axes[0]
    last = main.collections[-1].get_offsets()[-4:]
    wanted = maps[(maps["seed"] == 1) & (maps["what"] == "class")][["x", "y"]]
    np.testing.assert_allclose(np.asarray(last), wanted.to_numpy())
    sizes = main.collections[-1].get_sizes()
    assert sizes[-1] > sizes[0]


def test_a_name_full_of_signs_is_drawn_as_it_is(maps, tmp_path):
    table = maps.assign(
        classname=maps["classname"].astype(str).replace({"wart": r"$\frac{1}$ <b>", "acne": ""})
    )
    fig = map_figure(table, None, marker="modality")
    save_figure(fig, "signs", "x.ipynb", folder=tmp_path)  # mathematics would fail here
    assert [text.get_text() for text in fig.legends[0].get_texts()][2:4] == ["-", r"$\frac{1}$ <b>"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, m: map_points(e.take(range(4))), "a map needs at least 5 points, got 4"),
        (lambda e, m: map_points(e, metric="cosin"), "unknown metric 'cosin'; did you mean 'cosine'"),
        (lambda e, m: map_points(e, n_neighbors=1), "n_neighbors must be at least 2, got 1"),
        (lambda e, m: map_points(e, seed=()), "there is no seed"),
        (lambda e, m: what_a_map_hides(e, m, "clasname"), "unknown column 'clasname' in the points"),
        (
            lambda e, m: what_a_map_hides(e.take(range(9)), m),
            "the maps are of 90 points, the embeddings are 9",
        ),
        (lambda e, m: map_figure(m, None, colour="colour"), "unknown column 'colour' in the map"),
        (
            lambda e, m: map_figure(m.assign(row=np.arange(len(m))), None, marker="row"),
            "column 'row' has 360 values, but there are 10 markers",
        ),
    ],
)
def test_errors_name_what_is_wrong(maps, call, message):
    with pytest.raises(ValueError, match=message):
        call(blobs(text=4), maps)


def draw(folder: Path) -> bytes:
    """The PNG of a map with its numbers."""
    embeddings = blobs(text=4)
    maps = map_points(embeddings, n_neighbors=8, seed=(1, 2))
    save_figure(map_figure(maps, what_a_map_hides(embeddings, maps)), "map", "a test", folder=folder)
    return (folder / "map.png").read_bytes()


@pytest.mark.slow
def test_two_processes_draw_the_same_bytes(tmp_path, repository):
    code = """
import sys, pathlib, torch
torch.set_num_threads(1)
from tests.show.maps.test_umap import draw
draw(pathlib.Path(sys.argv[1]))
assert torch.get_num_threads() == 1, "numba must not change how many threads torch has"
"""
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    done = subprocess.run(command, cwd=repository, check=True, timeout=300, capture_output=True, text=True)
    assert "maps: the first waits for numba" in done.stderr
    assert draw(tmp_path / "here") == (tmp_path / "other" / "map.png").read_bytes()


def test_a_point_opposite_to_all_others_has_a_place(tmp_path):
    vectors = np.tile(np.eye(1, 8), (13, 1))
    vectors[-1] = -vectors[-1]
    columns = {"classname": ["a"] * 12 + ["b"], "what": "image", "modality": "image", "image": range(13)}
    points = Embeddings(vectors, pd.DataFrame(columns))
    maps = map_points(points, n_neighbors=5, progress=False)
    assert np.isfinite(maps[["x", "y"]]).all(axis=None)
    assert what_a_map_hides(points, maps).loc["silhouette of classname"].notna().all()
    assert "13 points by UMAP" in scatter_page(maps).html
