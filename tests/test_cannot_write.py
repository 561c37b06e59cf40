"""Whatever writes a file says which path cannot be written, and why, before it computes anything long."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import medvlp
import medvlp.show
from medvlp.backbone.pretrain import save_clip


@pytest.fixture(scope="module")
def parts() -> dict:
    data = medvlp.load_dataset("phantom-derm", num_shots=2)
    clip = medvlp.load_clip("tiny", device="cpu")
    zero = medvlp.ZeroShot(clip, data.card)
    return {"clip": clip, "data": data, "zero": zero, "images": data.test.subset(range(20))}


def map_page(parts, path):
    points = medvlp.show.symptom_points(parts["zero"]).points
    maps = points.assign(x=range(16), y=0, metric="cosine", seed=1, n_neighbors=2, min_dist=0.1)
    return medvlp.show.scatter_page(maps).save(path / "page.html")


def review(parts, path):
    one = medvlp.SymptomReview(parts["zero"].symptoms, parts["data"].card, path=path / "set.json")
    for name in parts["data"].card.classnames:
        one.approve(name, flagged=True)
    one.save("me")


def trained(parts, path):
    config = medvlp.TrainConfig(epochs=1, views=0, keep="last")
    coop, train = medvlp.CoOp(parts["clip"], parts["data"].card), parts["data"].train
    medvlp.fit(coop, train, None, config, checkpoint=path / "run", progress=False)


WRITERS = {
    "figure": lambda p, path: medvlp.show.save_figure(plt.figure(), "empty", "a notebook", path),
    "gallery": lambda p, path: medvlp.show.failures(p["zero"], p["images"]).to_html(path / "page.html"),
    "map": map_page,
    "method": lambda p, path: medvlp.save(p["zero"], path / "zero.safetensors"),
    "clip": lambda p, path: save_clip(p["clip"], path, {}),
    "features": lambda p, path: medvlp.image_features(p["clip"], p["images"], cache_dir=path),
    "evaluation": lambda p, path: medvlp.evaluate(p["zero"], p["images"], cache_dir=path),
    "representations": lambda p, path: medvlp.shipped_representations("phantom-derm").save(path / "r"),
    "symptoms": lambda p, path: medvlp.SymptomSet.from_phrases(p["data"].card, p["zero"].symptoms).save(
        path / "set.json"
    ),
    "review": review,
    "study": lambda p, path: medvlp.run_ablation({"method": ["ZeroShot"]}, store=path, data="phantom-derm"),
    "copied study": lambda p, path: medvlp.shipped_study("few_shot").store.copy_to(path, []),
    "training": trained,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_path_below_a_file_is_named(writer, parts, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OSError, match="notes.txt is a file, no folder. Give another path") as raised:
        WRITERS[writer](parts, tmp_path / "notes.txt" / "below")
    assert "cannot be written" in str(raised.value) and type(raised.value) is OSError
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_notebook_goes_on_where_its_copy_of_a_figure_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("figures").touch()
    figure = plt.figure()
    with pytest.warns(UserWarning, match="the figure is not saved: .*figures/empty.png cannot be written"):
        assert medvlp.show.save_figure(figure, "empty", "a notebook") is figure
