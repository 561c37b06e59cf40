import gc
import io
import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medvlp.data.cards import DataCard, load_card
from medvlp.data.datasets import PhantomSet, load_dataset
from medvlp.data.images import ImageError
from medvlp.data.phantoms.worlds import get_world
from tests.data.squares import (
    COLUMNS,
    FOLDER,
    LEVELS,
    MISSING,
    PATIENTS,
    TABLE,
    card_of,
    draw,
    draw_classes,
    ids_of,
    left_out,
    refused,
    rows_of,
    sizes,
    write_classes,
    write_table,
)

TEN_LINES = """---
name: brightness
title: Squares of three shades
modality: a square
classes: [dark, grey, bright]
source:
  kind: folder
  folder: squares
  group_pattern: '^(p\\d+)_'
---
"""
MNIST = "pneumoniamnist"


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (3, H, W)


# ---------------------------------------------------------------- folders


def test_a_users_own_folder_needs_a_card_of_ten_lines_and_no_code(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDVLP_DATA", raising=False)
    draw_classes(tmp_path / "squares")
    (tmp_path / "brightness.md").write_text(TEN_LINES)
    assert len(TEN_LINES.splitlines()) == 10
    data = load_dataset(tmp_path / "brightness.md")  # the folder lies beside the card
    assert sizes(data) == {"train": 42, "val": 6, "test": 12}
    assert (data.summary()[list(LEVELS)] > 0).all().all()
    seen = []
    for images, labels in DataLoader(data.train.with_transform(to_tensor), batch_size=7, shuffle=True):
        assert images.shape[1:] == (3, 12, 10)
        wanted = torch.tensor(list(LEVELS.values()))[labels] / 255  # (B,)
        assert (images.mean(dim=(1, 2, 3)) - wanted).abs().max() < 0.03
        seen += labels.tolist()
    assert sorted(seen) == sorted(data.train.labels.tolist())


def test_the_same_folder_by_itself_its_parent_or_the_environment(tmp_path, monkeypatch):
    draw_classes(tmp_path / "squares")
    card = card_of(kind="folder", folder="squares")
    by_parent = ids_of(load_dataset(card, root=tmp_path))
    assert ids_of(load_dataset(card, root=str(tmp_path / "squares"))) == by_parent
    assert ids_of(load_dataset(FOLDER, root=tmp_path / "squares")) == by_parent
    monkeypatch.setenv("MEDVLP_DATA", str(tmp_path))
    assert ids_of(load_dataset(card)) == by_parent
    (tmp_path / "squares").rename(tmp_path / "renamed")
    assert ids_of(load_dataset(card, root=tmp_path / "renamed")) == by_parent


def test_splits_that_are_made_keep_patients_whole_and_are_recorded(squares):
    card = card_of(kind="folder", group_pattern=PATIENTS, val_fraction=0.25, test_fraction=0.2)
    data = load_dataset(card, root=squares, seed=3)
    groups = [group for images in data.splits.values() for group in set(images.groups)]
    assert len(groups) == len(set(groups)) == 10  # patient p003 has images of every class
    made = {name: split["made"] for name, split in data.record["splits"].items()}
    assert made["test"] == "0.2 of the 60 images then in train, stratified by class, groups whole, seed 3"
    assert made["train"] == "given"
    assert data.record["splits"]["test"]["images"] == 12
    assert json.loads(json.dumps(data.record)) == data.record
    assert ids_of(load_dataset(card, root=squares, seed=3)) == ids_of(data)
    assert ids_of(load_dataset(card, root=squares, seed=4)) != ids_of(data)


@pytest.mark.parametrize("same", [True, False])
def test_a_split_that_shares_an_image_or_a_patient_is_refused(squares, monkeypatch, same):
    card = card_of(kind="folder", group_pattern=PATIENTS)

    def bad_split(labels, *args):
        return np.arange(0 if same else 1, len(labels)), np.array([0])

    monkeypatch.setattr("medvlp.data.datasets.split", bad_split)
    refused("1 group.* in both train and val", card, squares)


def test_split_folders_by_their_usual_names_and_class_folders_by_alias(tmp_path):
    draw_classes(tmp_path / "Train")
    draw_classes(tmp_path / "validation", each=4)
    for i, alias in enumerate(["d", "G", "BRIGHT"]):
        draw(tmp_path / "test" / alias / "deep" / "one.JPEG", list(LEVELS.values())[i])
    data = load_dataset(FOLDER, root=tmp_path)
    assert sizes(data) == {"train": 60, "val": 12, "test": 3}
    assert dict(zip(data.test.ids, data.test.labels.tolist(), strict=True)) == {
        "test/BRIGHT/deep/one.JPEG": 2,
        "test/G/deep/one.JPEG": 1,
        "test/d/deep/one.JPEG": 0,
    }
    assert {split["made"] for split in data.record["splits"].values()} == {"given"}


def test_a_split_folder_that_the_card_leaves_out_is_not_used_and_recorded(tmp_path):
    for name in ("train", "val", "test"):
        draw_classes(tmp_path / name)
    card = card_of(kind="folder", splits={"train": "train", "val": None, "test": "test"})
    data = load_dataset(card, root=tmp_path)
    assert all(name.startswith("train/") for name in data.val.ids)
    assert data.record["unused_folders"] == ["val"]


def test_a_split_folder_that_the_card_names_must_be_there(tmp_path):
    draw_classes(tmp_path / "train")
    card = card_of(kind="folder", splits={"train": "train", "test": "holdout"})
    refused(r"no split folder 'holdout' in .*; it has 'train'", card, tmp_path, MISSING)
    (tmp_path / "train").rename(tmp_path / "test")
    refused(r"no split folder 'train' in .*; it has 'test'", FOLDER, tmp_path, MISSING)


def test_patients_that_given_splits_share_are_counted(tmp_path):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test", each=6)
    data = load_dataset(card_of(kind="folder", group_pattern=PATIENTS), root=tmp_path)
    shared = data.record["groups_in_two_splits"]  # p000, p001, p002, each in train or in val, made out of it
    assert sum(shared.values()) == 3 and set(shared) <= {"train/test", "val/test"}
    for pair, n in shared.items():
        assert f"groups in both {pair}, as the data was given: {n}" in repr(data)


def test_other_files_are_left_alone_counted_and_said(squares):
    assert "no images" not in repr(load_dataset(FOLDER, root=squares))
    for name in ("Thumbs.db", ".hidden.png", "LICENSE", "a.PDF", "b.pdf", "c.mpg", "d.eps", "e.h5", "f.mat"):
        (squares / "dark" / name).write_text("x")
    (squares / "__MACOSX").mkdir()
    data = load_dataset(FOLDER, root=squares)
    assert sum(sizes(data).values()) == 60
    others = dict.fromkeys(("", ".db", ".eps", ".h5", ".mat", ".mpg", "hidden"), 1) | {".pdf": 2}
    assert data.record["other_files"] == others
    said = "1 without ending, 1 .db, 1 .eps, 1 .h5, 1 .mat, 1 .mpg, 2 .pdf, 1 hidden"
    assert f"no images, left out: {said}" in repr(data)


def test_whatever_pillow_writes_and_opens_again_is_an_image(squares):
    """Every ending that Pillow knows, in either case, beside the usual ones."""
    endings = []
    for suffix in Image.registered_extensions():
        path = squares / "dark" / f"own{suffix.upper() if len(endings) % 2 else suffix}"
        try:
            Image.new("1" if suffix in (".msp", ".xbm") else "RGB", (16, 16), 255).save(path)
            Image.open(path).load()
        except (OSError, ValueError, KeyError):
            path.unlink(missing_ok=True)
        else:
            endings.append(suffix)
    assert {".jfif", ".mpo", ".avif", ".tga", ".pnm", ".jpx"} < set(endings) and len(endings) > 30
    data = load_dataset(FOLDER, root=squares)
    assert data.summary()["dark"].sum() == 20 + len(endings)
    assert data.record["other_files"] == {}


def test_an_unknown_class_folder_is_named_with_the_choices_or_skipped(squares):
    draw(squares / "brigth" / "a.png", 200)
    refused(r"folder .*brigth: unknown class 'brigth'.*did you mean 'bright'\?.*'dark'", FOLDER, squares)
    assert left_out(FOLDER, squares) == (["brigth"], 60)
    assert "left out: 1" in repr(load_dataset(FOLDER, root=squares, on_error="skip"))


def test_a_missing_root_says_what_is_expected_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDVLP_DATA", raising=False)
    card = card_of(kind="folder", folder="squares", how_to_get="Draw them yourself.")
    for root, looked in ((tmp_path / "no", "no"), (None, "nowhere")):
        with pytest.raises(FileNotFoundError) as caught:
            load_dataset(card, root=root)
        told = ("card 'brightness'", "'dark' and 'grey'", "'squares'", looked, "MEDVLP_DATA", "Draw them")
        assert all(part in str(caught.value) for part in told)


def test_empty_splits_and_classes(tmp_path):
    draw_classes(tmp_path / "train")
    (tmp_path / "test" / "dark").mkdir(parents=True)
    refused(r"no images in the class folders of .*test \(other files: none\)", FOLDER, tmp_path)
    draw_classes(tmp_path / "some", names=["dark", "grey"])
    refused("no image of class 'bright' in the train split", FOLDER, tmp_path / "some")


def test_a_broken_image_raises_when_read_or_is_skipped_up_front(squares):
    broken = squares / "grey" / "p000_0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = load_dataset(FOLDER, root=squares)
    with pytest.raises(ImageError, match=r"grey/p000_0\.png.*on_error='skip'"):
        [list(images) for images in data.splits.values()]
    data = load_dataset(FOLDER, root=squares, on_error="skip")
    assert sum(len(list(images)) for images in data.splits.values()) == 59
    (skipped,) = data.record["skipped"]
    assert skipped["id"] == "grey/p000_0.png" and "broken" in skipped["reason"]
    assert sorted(path.name for path in squares.iterdir()) == sorted(LEVELS)  # nothing written


def test_files_that_are_none_are_named_or_skipped_without_a_wait(squares):
    """A pipe, links to a device and to nothing, an empty and a very large file, under pictures' names."""
    names = ("pipe", "device", "empty", "large", "lost")
    strange = {name: squares / "dark" / f"{name}.png" for name in names}
    os.mkfifo(strange["pipe"])
    strange["device"].symlink_to("/dev/zero")
    strange["empty"].touch()
    whole = (squares / "dark" / "p000_0.png").read_bytes()
    size = whole.index(b"IHDR") + 4
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[size + 8 : size + 13]
    large = whole[: size - 4] + header + struct.pack(">I", zlib.crc32(header)) + whole[size + 17 :]
    strange["large"].write_bytes(large)
    strange["lost"].symlink_to(squares / "nowhere.png")
    data = load_dataset(FOLDER, root=squares, on_error="skip")
    reasons = {entry["id"]: entry["reason"] for entry in data.record["skipped"]}
    assert reasons.keys() <= {f"dark/{name}.png" for name in strange}
    assert data.summary()["dark"].sum() == 20
    assert "no file" in reasons["dark/pipe.png"] and "no file" in reasons["dark/device.png"]
    assert "empty" in reasons["dark/empty.png"] and "3,600,000,000 pixels" in reasons["dark/large.png"]
    write_classes(squares)
    with open(squares / "labels.csv", "a") as table:
        table.write(f"dark/{'x' * 5000},dark\n")
    ids, left = left_out(card_of(kind="csv"), squares)
    assert len(ids) == len(strange) + 1 and left == 60


def test_options_that_do_not_fit_are_refused(squares):
    refused("image_size is for phantoms and MedMNIST", FOLDER, squares, image_size=64)
    refused("unknown on_error 'ignore'.*'raise', 'skip'", FOLDER, squares, on_error="ignore")
    refused("unknown card 'pneumona'; did you mean 'pneumonia'", "pneumona")


# ---------------------------------------------------------------- few shots


def test_few_shots_cut_train_and_validation_but_not_test(squares):
    card = card_of(kind="folder", val_fraction=0.4)
    whole, two, eight = (load_dataset(card, root=squares, num_shots=shots) for shots in (None, 2, 8))
    assert list(eight.train.counts.values()) == [8, 8, 8]
    assert list(two.val.counts.values()) == [2, 2, 2]
    assert list(eight.val.counts.values()) == [4, 4, 4]
    assert set(two.train.ids) < set(eight.train.ids) < set(whole.train.ids)
    assert set(two.val.ids) < set(eight.val.ids) < set(whole.val.ids)
    assert eight.test.ids == whole.test.ids
    assert "cut to 8 image(s) a class" in eight.record["splits"]["train"]["made"]
    refused(r"class 'dark' has 10 training image\(s\), fewer than num_shots=11", card, squares, num_shots=11)


# ---------------------------------------------------------------- tables


def test_a_table_with_splits_and_groups(tmp_path):
    write_table(tmp_path, rows_of(tmp_path))
    data = load_dataset(TABLE, root=tmp_path)
    assert data.train.ids == [f"images/{i}.png" for i in range(6)]
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.val.labels.tolist() == data.test.labels.tolist() == [0, 1, 2]
    assert data.train.groups == ["s0", "s0", "s1", "s1", "s2", "s2"]
    assert data.record["groups_in_two_splits"] == {"val/test": 1}
    assert np.asarray(data.test.image(2)).mean() == pytest.approx(LEVELS["bright"], abs=3)


def test_a_table_without_splits_gets_all_three(squares):
    write_classes(squares)
    assert sizes(load_dataset(card_of(kind="csv"), root=squares)) == {"train": 42, "val": 6, "test": 12}


@pytest.mark.parametrize(
    ("column", "value", "error", "message"),
    [
        ("label", "bleak", ValueError, r"line 4 of .*labels\.csv: unknown class 'bleak'.*Choices: 'dark'"),
        ("label", "3", ValueError, r"line 4 of .*: label 3 is out of range; .* 0 dark, 1 grey, 2 bright"),
        ("label", "-1", ValueError, r"line 4 of .*: label -1 is out of range"),
        ("label", "", ValueError, r"line 4 of .*: unknown class ''"),
        ("split", "hold-out", ValueError, r"line 4 of .*: unknown split 'hold-out'.*'train', 'val', 'test'"),
        ("path", "99.png", FileNotFoundError, r"line 4 of .*: there is no image file .*99\.png"),
        ("path", "", FileNotFoundError, r"line 4 of .*: there is no image file"),
        ("path", "images/0.png", ValueError, r"line 4 of .*: the image 'images/0\.png' is already in line 2"),
    ],
)
def test_a_bad_row_is_named_by_its_line_or_skipped(tmp_path, column, value, error, message):
    rows = rows_of(tmp_path)
    rows[2][("path", "label", "split").index(column)] = value
    write_table(tmp_path, rows)
    refused(message, TABLE, tmp_path, error=error)
    data = load_dataset(TABLE, root=tmp_path, on_error="skip")
    assert sum(sizes(data).values()) == 11
    assert len(data.record["skipped"]) == 1 and "line 4" in data.record["skipped"][0]["reason"]


def test_a_number_means_the_alias_that_says_so(tmp_path):
    rows = rows_of(tmp_path)
    for i, row in enumerate(rows):
        row[1] = str(i % 3 + 1)
    write_table(tmp_path, rows)
    card = card_of("123", kind="csv", columns=COLUMNS)
    assert load_dataset(card, root=tmp_path).val.labels.tolist() == [0, 1, 2]
    rows[2][1] = "0"
    write_table(tmp_path, rows)
    refused("label 0 is out of range; .* has 1 dark, 2 grey, 3 bright", card, tmp_path)


def test_a_table_that_is_missing_empty_or_lacks_a_column(tmp_path):
    card = card_of(kind="csv", columns=COLUMNS, how_to_get="Ask the owner.")
    refused(r"the table 'labels\.csv'.*Ask the owner", card, tmp_path, MISSING)
    (tmp_path / "labels.csv").touch()
    refused(r"cannot read the table .*labels\.csv", card, tmp_path)
    write_table(tmp_path, [], ["path", "label", "split", "patients"])
    refused(r"unknown column 'patient' in .*csv; did you mean 'patients'.*group column", card, tmp_path)
    write_table(tmp_path, [])
    refused("the table .*labels.csv names no image for train", card, tmp_path)


# ---------------------------------------------------------------- MedMNIST


def write_npz(path, labels=(0, 1), channels=(), size=28, **changed):
    rng = np.random.default_rng(0)
    arrays = {}
    for number, (split, n) in enumerate({"train": 12, "val": 6, "test": 8}.items()):
        pixels = rng.integers(0, 256, (n, size, size, *channels), dtype=np.uint8)
        arrays[f"{split}_images"] = pixels // (number + 1)
        arrays[f"{split}_labels"] = np.resize(np.array(labels, dtype=np.uint8), (n, 1))
    np.savez(path, **(arrays | changed))
    return arrays


@pytest.mark.parametrize("channels", [(), (3,)])
def test_medmnist_from_a_local_file(tmp_path, channels):
    arrays = write_npz(tmp_path / "pneumoniamnist.npz", channels=channels)
    data = load_dataset(MNIST, root=tmp_path)
    assert sizes(data) == {"train": 12, "val": 6, "test": 8}
    assert data.test.ids[7] == "test/7"
    image, label = data.test[7]
    wanted = arrays["test_images"][7]
    wanted = wanted if channels else np.repeat(wanted[..., None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(image), wanted)
    assert label == 1
    assert data.record["image_size"] == 28


def test_the_largest_medmnist_size_there_or_the_one_asked_for(tmp_path):
    write_npz(tmp_path / "pneumoniamnist.npz")
    write_npz(tmp_path / "pneumoniamnist_64.npz", size=64)
    assert load_dataset(MNIST, root=tmp_path).train.image(0).size == (64, 64)
    assert load_dataset(MNIST, root=tmp_path, image_size=28).train.image(0).size == (28, 28)
    message = r"no pneumoniamnist_128\.npz in .*sizes there: 28, 64.*download=True"
    refused(message, MNIST, tmp_path, MISSING, image_size=128)
    refused("no size 100. Choices: 28, 64, 128, 224", MNIST, tmp_path, image_size=100)


def test_medmnist_labels_are_checked_against_the_card(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    write_npz(path, labels=(0, 1, 2))
    refused(r"pneumoniamnist\.npz: train image 2: label 2 is out of range", MNIST, tmp_path)
    write_npz(path, val_labels=np.zeros((6, 14), dtype=np.uint8))
    refused("only sets with one label an image", MNIST, tmp_path)
    write_npz(path, val_images=np.zeros((6, 28, 28), dtype=np.float32))
    refused(r"val has images of shape \(6, 28, 28\), float32", MNIST, tmp_path)


def test_a_damaged_or_pickled_medmnist_file_is_refused(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    write_npz(path)
    path.write_bytes(path.read_bytes()[:5000])
    refused(r"pneumoniamnist\.npz is no whole MedMNIST file.*download it again", MNIST, tmp_path)
    np.savez(path, train_images=np.zeros((2, 28, 28), dtype=np.uint8))
    refused(r"is no whole MedMNIST file .*train_labels", MNIST, tmp_path)
    write_npz(path, train_labels=np.array([{}] * 12, dtype=object))
    refused("pickle", MNIST, tmp_path)


def test_a_medmnist_file_that_claims_more_than_memory_is_refused(tmp_path):
    """A header of 784 GB before a few bytes."""
    write_npz(tmp_path / "pneumoniamnist.npz")
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000_000, 28, 28)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "pneumoniamnist.npz") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "pneumoniamnist.npz", "w") as claims:
        for name, content in parts.items():
            claims.writestr(name, header.getvalue() + bytes(9) if name == "train_images.npy" else content)
    refused(r"pneumoniamnist\.npz( is no whole MedMNIST file \(Unable to allocate|: )", MNIST, tmp_path)


def test_a_medmnist_download_arrives_whole_or_not_at_all(tmp_path, monkeypatch):
    medmnist = pytest.importorskip("medmnist", reason="needs the medmnist package")

    def fetched(url, root, filename, md5):
        write_npz(f"{root}/{filename}")

    def broken_off(url, root, filename, md5):
        fetched(url, root, filename, md5)
        raise OSError("connection lost")

    target = "torchvision.datasets.utils.download_url"
    monkeypatch.setattr(target, broken_off)
    message = r"pneumoniamnist\.npz could not be downloaded.*by hand"
    refused(message, MNIST, tmp_path / "new", ConnectionError, download=True)
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(target, fetched)
    monkeypatch.setattr(medmnist.PneumoniaMNIST, "__len__", lambda self: len(self.imgs))
    assert len(load_dataset(MNIST, root=tmp_path / "new", download=True).test) == 8
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pneumoniamnist.npz"]


# ---------------------------------------------------------------- phantoms


@pytest.fixture(scope="module")
def phantom_card():
    card, sizes = load_card("phantom-derm"), {"train": 150, "val": 30, "test": 40}
    source = card.source.model_copy(update={"sizes": sizes})
    return card.model_copy(update={"name": "few-derm", "source": source})


def test_phantoms_know_what_they_show(phantom_card):
    data = load_dataset(phantom_card, image_size=32)
    assert isinstance(data.train, PhantomSet)
    assert sizes(data) == {"train": 150, "val": 30, "test": 40}
    assert data.train.ids[17] == "few-derm/seed1/train/000017"
    world = get_world("derm")
    k = world.index("veil")
    shown = data.train.attributes
    assert list(shown) == [attribute.name for attribute in world.attributes]
    assert shown.index.tolist() == data.train.ids
    assert set(shown["veil"].cat.categories) == {"absent", "present"}
    assert (shown == "present").to_numpy().tolist() == data.train.latents.attributes.tolist()
    few = data.train.latents[torch.tensor([3, 140])]
    drawn = [np.asarray(data.train.image(i)) for i in (3, 140)]
    as_they_are = world.render(few, size=32).permute(0, 2, 3, 1).numpy()
    flipped = world.render(few.with_attribute(k, ~few.attributes[:, k]), size=32).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.stack(drawn), as_they_are)
    assert (flipped != as_they_are).any(axis=(1, 2, 3)).all()


def test_phantom_splits_and_seeds_are_different_draws(phantom_card):
    data, again, other = (load_dataset(phantom_card, seed=seed, image_size=24) for seed in (1, 1, 2))
    assert data.train.fingerprint == again.train.fingerprint
    assert len({images.fingerprint for images in (data.train, data.val, data.test, other.train)}) == 4
    seeds = [set(images.latents.seeds.tolist()) for images in (data.train, data.val, data.test, other.train)]
    assert len(set.union(*seeds)) == 150 + 30 + 40 + 150
    assert load_dataset(phantom_card, image_size=32).train.fingerprint != data.train.fingerprint


def test_a_phantom_card_must_list_the_classes_of_its_world(phantom_card):
    turned = phantom_card.model_copy(update={"classes": phantom_card.classes[::-1]})
    said = "derm world has the classes 'melanoma', 'nevus', but card 'few-derm' has 'nevus', 'melanoma'"
    refused(said, turned)


# ---------------------------------------------------------------- ImageSet


@pytest.fixture
def data(squares):
    return load_dataset(FOLDER, root=squares)


def test_subsets_keep_order_ids_labels_and_transform(data):
    train = data.train.with_transform(to_tensor)
    part = train.subset([5, 0, 30])
    assert part.ids == [train.ids[5], train.ids[0], train.ids[30]]
    assert part.labels.tolist() == train.labels[[5, 0, 30]].tolist()
    torch.testing.assert_close(part[2][0], train[30][0])
    bright = train.subset(train.labels == 2)
    assert bright.counts == {"dark": 0, "grey": 0, "bright": train.counts["bright"]}
    assert part.subset(torch.tensor([1])).ids == [train.ids[0]]
    assert len(part.subset([])) == len(part.subset(np.zeros(3, dtype=bool))) == 0
    with pytest.raises(IndexError):
        train.subset([len(train)])


def test_items_count_from_either_end_and_with_transform_leaves_the_original_alone(data):
    val = data.val
    assert isinstance(val.with_transform(to_tensor)[0][0], torch.Tensor)
    assert [type(part) for part in val[0]] == [Image.Image, int]
    assert np.array_equal(np.asarray(val[-1][0]), np.asarray(val[len(val) - 1][0]))
    assert len(list(val)) == len(val)
    with pytest.raises(IndexError):
        val[len(val)]


def test_the_fingerprint_follows_content_labels_and_ids(squares):
    before = load_dataset(FOLDER, root=squares).train
    assert load_dataset(FOLDER, root=squares).train.fingerprint == before.fingerprint
    assert before.with_transform(to_tensor).fingerprint == before.fingerprint
    assert before.subset(range(5)).fingerprint != before.subset(range(6)).fingerprint
    draw(squares / before.ids[3], 77, seed=99)
    assert load_dataset(FOLDER, root=squares).train.fingerprint != before.fingerprint


def test_the_fingerprint_of_arrays_follows_their_pixels(tmp_path):
    arrays = write_npz(tmp_path / "pneumoniamnist.npz")
    before = load_dataset(MNIST, root=tmp_path)
    changed = arrays["val_images"].copy()
    changed[3, 10, 10] ^= 1
    write_npz(tmp_path / "pneumoniamnist.npz", val_images=changed)
    after = load_dataset(MNIST, root=tmp_path)
    assert after.val.fingerprint != before.val.fingerprint
    assert after.test.fingerprint == before.test.fingerprint
    assert after.val.subset([0, 1]).fingerprint == before.val.subset([0, 1]).fingerprint


def test_workers_read_the_same_images_and_pass_errors_on(squares, monkeypatch):
    val = load_dataset(FOLDER, root=squares).val.with_transform(to_tensor)
    here, there = (torch.cat([x for x, _ in DataLoader(val, batch_size=2, num_workers=n)]) for n in (0, 2))
    torch.testing.assert_close(there, here)
    (squares / val.ids[0]).write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        list(DataLoader(val.subset([0]), num_workers=1))
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # it waits for workers
    gc.collect()  # now, not in the next test


def test_image_sets_can_be_pickled(data, phantom_card):
    for images in (data.val.with_transform(to_tensor), load_dataset(phantom_card, image_size=16).val):
        copy = pickle.loads(pickle.dumps(images))
        assert (copy.ids, copy.fingerprint) == (images.ids, images.fingerprint)
        assert np.array_equal(np.asarray(copy.image(1)), np.asarray(images.image(1)))


def test_what_is_printed_counts_the_classes(data):
    assert repr(data.test) == "ImageSet(brightness, test: 12 images; dark 4, grey 4, bright 4)"
    assert "Squares" in repr(data) and "bright" in repr(data)
    assert data.summary().loc["test"].to_dict() == {"dark": 4, "grey": 4, "bright": 4, "total": 12}


def test_a_class_called_total_keeps_its_column(data):
    for names in (["total", "grey", "bright"], ["total", "total_", "split"]):
        pairs = zip(FOLDER.classes, names, strict=True)
        classes = [one.model_copy(update={"name": name}) for one, name in pairs]
        card = FOLDER.model_copy(update={"classes": classes})
        parts = {name: replace(images, card=card) for name, images in data.splits.items()}
        table = replace(data, card=card, **parts).summary()
        assert table.loc["test"].tolist() == [4, 4, 4, 12]
        assert table.columns[:3].tolist() == names and table.columns.is_unique


# ---------------------------------------------------------------- the real X-rays


def test_pneumonia_counts_and_a_validation_split_of_whole_patients(data_root, monkeypatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args))
    start = time.process_time()
    data = load_dataset("pneumonia", root=data_root)
    assert time.process_time() - start < 1
    assert not opened
    table = data.summary()
    assert (table.loc["train"] + table.loc["val"]).tolist() == [1341, 3875, 5216]
    assert table.loc["test"].tolist() == [234, 390, 624]
    assert table.loc["val"].tolist() == pytest.approx([134.1, 387.5, 521.6], abs=3)
    assert not set(data.train.groups) & set(data.val.groups)
    assert sum(group.startswith("person") for group in set(data.train.groups)) > 1000
    shared = data.record["groups_in_two_splits"]
    assert shared["train/test"] + shared["val/test"] == 170  # the person numbers that both given splits have
    assert ids_of(load_dataset("pneumonia", root=data_root)) == ids_of(data)
    assert ids_of(load_dataset("pneumonia", root=data_root, seed=2))["val"] != data.val.ids


def test_pneumonia_images_read_as_they_are(data_root):
    data = load_dataset("pneumonia", root=data_root, num_shots=4)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    for i, name in enumerate(data.train.ids):
        assert ("PNEUMONIA" in name) == bool(data.train.labels[i])
        image = data.train.image(i)
        assert image.mode == "RGB" and image.size == (224, 224)
        assert np.asarray(image).std() > 20


def test_three_classes_from_the_file_names_through_a_table(data_root, tmp_path):
    table = load_dataset("pneumonia", root=data_root).split_table()
    words = {"bacteria": "bacterial pneumonia", "virus": "viral pneumonia"}
    in_name = table["id"].str.extract("_(bacteria|virus)_", expand=False)
    table["label"] = in_name.map(words).fillna("normal lung")
    table.to_csv(tmp_path / "three.csv", index=False)
    columns = {"path": "id", "label": "label", "split": "split", "group": "group"}
    source = {"kind": "csv", "folder": "chest_xray", "file": str(tmp_path / "three.csv"), "columns": columns}
    classes = ["normal lung", *words.values()]
    card = DataCard(name="three", title="Three", modality="an X-ray", classes=classes, source=source)
    data = load_dataset(card, root=data_root)
    assert (data.summary().loc["train"] + data.summary().loc["val"]).tolist() == [1341, 2530, 1345, 5216]
    assert data.summary().loc["test"].tolist() == [234, 242, 148, 624]
    assert data.test.ids == table.loc[table["split"] == "test", "id"].tolist()
    assert data.test.image(0).size == (224, 224)
