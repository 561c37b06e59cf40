"""Features that the package ships for images that are not here: the same sets, without a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medvlp
from medvlp.backbone import features
from medvlp.data import folders, tensor_files
from medvlp.show import SymptomExplorer, failures, image_points, show_images, symptom_scores_table

CARD = """---
name: beads
title: Beads of two colours
modality: a photo
source:
  kind: csv
  folder: beads
  file: {train: train.csv, val: val.csv, test: test.csv}
  second_file: again.csv
  how_to_get: Ask the bead maker.
classes:
  - {name: ruby, knowledge: {symptoms: [a dark red ball, a warm shade]}}
  - {name: jade, knowledge: {symptoms: [a green ball, a cold shade]}}
attributes:
  - {name: size, values: {big: a big bead, small: a small bead}}
---
"""
SIZES = {"train": 12, "val": 6, "test": 8}


def same(one: medvlp.Data, other: medvlp.Data, every: int = 1) -> bool:
    """Whether two data sets have the same images, labels and annotations, and every few the same hash."""
    folder = ("other_files", "unused_folders")  # which only a walk through the folder itself finds
    records = [{k: v for k, v in data.record.items() if k not in folder} for data in (one, other)]
    return records[0] == records[1] and all(
        (a.ids, a.groups) == (b.ids, b.groups)
        and a.labels.equal(b.labels)
        and len({images.subset(range(0, len(images), every)).fingerprint for images in (a, b)}) == 1
        and all(x.equals(y) for x, y in zip(a.annotations, b.annotations, strict=True))
        for a, b in zip(one.splits.values(), other.splits.values(), strict=True)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of data: images, in a table a split and in class folders."""
    folder, noise = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    again = ["path,size"]
    for split, n in SIZES.items():
        lines = ["path,label,size"]
        for i in range(n):
            name, label = f"{split}/{i % 2}/{i}.png", ("ruby", "jade")[i % 2]
            for path in (folder / "beads" / name, folder / "shelf" / split / label / f"{i}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
            lines.append(f"{name},{label},{'big' if i % 3 else ''}")
        again.append(f"{name},small")
        (folder / "beads" / f"{split}.csv").write_text("\n".join(lines))
    (folder / "beads" / "again.csv").write_text("\n".join(again))
    return folder


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    """The card of the table, where no images are."""
    path = tmp_path_factory.mktemp("cards") / "beads.md"
    path.write_text(CARD)
    return path


@pytest.fixture(scope="module", autouse=True)
def ships(card, clip, root, tmp_path_factory):
    """The package ships what `clip` makes of the images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "ASSETS", tmp_path_factory.mktemp("assets"))
        features.main(str(card), clip.name, root)
        yield


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """Nobody has said where images are."""
    monkeypatch.delenv("MEDVLP_DATA", raising=False)


@pytest.fixture(scope="module")
def data(card, ships) -> medvlp.Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MEDVLP_DATA", raising=False)
        return medvlp.load_dataset(card)


def of_pixels(clip, images) -> torch.Tensor:
    """Features (N, D) of the pictures themselves."""
    with torch.no_grad():
        return clip.encode_images(torch.stack([clip.preprocess(images.image(i)) for i in range(len(images))]))


def test_the_same_set_without_a_picture(card, clip, data, root):
    """And the same numbers: what is shipped of an image is taken where the image is, too."""
    here = medvlp.load_dataset(card, root)
    assert same(here, data) and data.test.annotations[1].notna().any(axis=None)
    assert len(list(tensor_files.ASSETS.rglob("*.png"))) == 0
    assert "the pictures are not here: these are features that clip" in repr(data)
    assert "8 images, whose pictures are not here;" in repr(data.test)
    for one, other in zip(here.splits.values(), data.splits.values(), strict=True):
        pixels = of_pixels(clip, one)
        one, other = (medvlp.image_features(clip, images) for images in (one, other))
        assert one.ids == other.ids and one.labels.equal(other.labels)
        assert one.features.equal(other.features) and not one.features.equal(pixels)
        torch.testing.assert_close(one.features, pixels, atol=2e-4, rtol=0)
    some = data.test.subset([5, 2])
    expected = medvlp.image_features(clip, data.test).features[[5, 2]]
    assert medvlp.image_features(clip, some).features.equal(expected)
    assert medvlp.load_dataset(card, on_error="skip").record["skipped"] == []


def test_class_folders_too(clip, root, tmp_path, monkeypatch):
    """For packaged cards alone: another's folder of that name has other images."""
    source = "source: {kind: folder, folder: shelf, splits: {train: train, test: test}}\nclasses:\n"
    text = CARD[: CARD.index("source:")] + source + "  - ruby\n  - jade\n---\n"
    (tmp_path / "shelf.md").write_text(text)
    features.main(str(tmp_path / "shelf.md"), clip.name, root)
    with pytest.raises(FileNotFoundError, match="its images were not found"):
        medvlp.load_dataset(tmp_path / "shelf.md")
    monkeypatch.setattr(folders, "cards_folder", lambda: tmp_path)
    here, data = (medvlp.load_dataset(tmp_path / "shelf.md", where) for where in (root, None))
    assert here.record["unused_folders"] == ["val"]
    assert same(here, data) and len(data.val) == 2  # made out of train


def test_what_needs_features_only_works(clip, data, tmp_path):
    zero, vip = medvlp.ZeroShot(clip, data.card, knowledge="symptoms"), medvlp.ViP(clip, data.card)
    config = medvlp.TrainConfig(epochs=1, batch_size=6, views=0)
    medvlp.fit(vip, data.train, data.val, config, progress=False)
    probe = medvlp.LinearProbe(clip, data.card)
    medvlp.fit(probe, data.train, data.val, progress=False)
    for method in (zero, vip, probe):
        assert len(medvlp.evaluate(method, data.test, n_bootstrap=10).per_image) == 8
    feature = medvlp.image_features(clip, data.test).features[0]
    assert len(symptom_scores_table(vip, feature)) == 4
    assert len(image_points(clip, data.test)) == 8
    runs = {"method": ["CoOp"], "clip": [clip], "data": [data], "num_shots": [2], "epochs": [1], "views": [0]}
    study = medvlp.run_ablation(runs, store=tmp_path / "runs", progress=False)
    assert set(study.runs["status"]) == {"done"}


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (lambda clip, data: data.test.image(1), r"no image 'test/1/1\.png': the pictures are not here"),
        (lambda clip, data: show_images(data.test), r"no image 'test/0/0\.png'"),
        (
            lambda clip, data: medvlp.fit(medvlp.ViP(clip, data.card), data.train, data.val, progress=False),
            r"no random views \(views, cache_views",
        ),
        (lambda clip, data: medvlp.evaluate(medvlp.VPT(clip, data.card), data.test), "looks at pixels"),
        (
            lambda clip, data: medvlp.image_features(medvlp.load_clip("tiny", "cpu"), data.test),
            "no features of clip 'tiny': .* only the features that clip 'local-dir:",
        ),
    ],
    ids=["image", "grid", "views", "image tower", "another clip"],
)
def test_what_needs_a_picture_says_how_to_get_it(clip, data, needs, says):
    with pytest.raises(FileNotFoundError, match=f"{says}.*How to get the pictures: Ask the bead maker"):
        needs(clip, data)


def test_a_folder_that_was_named_must_be_there(card, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="its images were not found"):
        medvlp.load_dataset(card, tmp_path)
    monkeypatch.setenv("MEDVLP_DATA", str(tmp_path))  # which holds other data
    assert medvlp.load_dataset(card).test.pictures_missing


def test_people_see_a_square_and_what_the_expert_noted(clip, data, tmp_path):
    zero = medvlp.ZeroShot(clip, data.card, knowledge="symptoms")
    explorer = SymptomExplorer(zero, data.test, index=1)
    expected = medvlp.evaluate(zero, data.test, n_bootstrap=10).per_image.loc[1, "P(ruby)"]
    assert explorer.probabilities().loc["ruby", "now"] == pytest.approx(expected, abs=1e-6)
    pixels = np.asarray(explorer.image)
    assert (pixels == 211).mean() > 0.8 and pixels.min() < 60  # light grey, with dark words
    explorer._repr_mimebundle_()
    assert "image 1 of beads, which is not here" in explorer._picture.value
    assert "size: big" in explorer._picture.value
    with pytest.raises(FileNotFoundError, match="no image 'test/1/1.png'"):  # a square is no image
        explorer._feature(medvlp.VPT(clip, data.card))
    wrong = failures(zero, data.test, data.train)
    page = wrong.to_html(tmp_path / "page.html").read_text()
    assert page.count("an expert noted <bdi>size: big") == sum(
        data.test.attributes["size"].notna().iloc[list(wrong.table["image"])]
    )
    assert wrong.figure().axes


def test_a_damaged_file_is_named(card, data):
    path = tensor_files.ASSETS / "beads" / tensor_files.FEATURES
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match="features.safetensors is damaged"):
            medvlp.load_dataset(card)
    finally:
        path.write_bytes(whole)


# --- what the package ships ---

SHIPPED = sorted(
    path.parent for path in tensor_files.ASSETS.glob(f"*/{tensor_files.FEATURES}")
)  # before tests change it


@pytest.fixture
def package(monkeypatch):
    """What is shipped by the package itself."""
    monkeypatch.setattr(
        tensor_files, "ASSETS", Path(tensor_files.__file__).parents[1] / "assets" / "features"
    )


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
class TestPackage:
    def test_it_is_small_and_of_a_clip_that_is_here(self, folder, package):
        store = tensor_files.Shipped.read(folder)
        made_by = medvlp.load_clip(store.clip, device="cpu")
        some = store.take(np.arange(3))
        known = tensor_files.shipped_features(made_by.fingerprint)
        assert {known[one].shape for one in some.hashes} == {(made_by.embed_dim,)}
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
        assert not {path.suffix for path in folder.iterdir()} - {".gz", ".safetensors"}
        assert f"`{folder.name}`" in (folder.parent / "README.md").read_text(encoding="utf-8")

    def test_it_is_what_the_images_give(self, folder, package, data_root):
        if not (data_root / folder.name).is_dir():
            pytest.skip(f"needs the images of {folder.name} in MEDVLP_DATA")
        cards = [medvlp.load_card(name) for name in medvlp.list_cards()]
        for card in (card for card in cards if getattr(card.source, "folder", None) == folder.name):
            here, data = medvlp.load_dataset(card, data_root), medvlp.load_dataset(card)
            assert data.test.pictures_missing and not here.test.pictures_missing
            assert same(here, data, every=100)
            made_by = medvlp.load_clip(data.test.store.clip, device="cpu")
            rows = np.random.default_rng(1).permutation(len(here.test))[:64]
            one = of_pixels(made_by, here.test.subset(rows))
            other = medvlp.image_features(made_by, data.test.subset(rows)).features
            torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
