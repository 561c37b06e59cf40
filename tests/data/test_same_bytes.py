"""What an image set is known by, and images that are the same: both go by the bytes of the files."""

import json
import os
import shutil

import numpy as np
import pytest

from medvlp.data import files
from medvlp.data.datasets import load_dataset
from medvlp.data.files import cache_folder, file_hashes
from medvlp.data.images import ImageError
from tests.data.squares import (
    FOLDER,
    LEVELS,
    PATIENTS,
    card_of,
    draw,
    draw_classes,
    write_classes,
    write_table,
)
from tests.data.test_datasets import MNIST, write_npz


def prints(root, card=FOLDER):
    return {name: images.fingerprint for name, images in load_dataset(card, root=root).splits.items()}


def alter(path):
    """Change a byte; size and times stay, as where an archive is unpacked over the files."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def settled(monkeypatch):
    """Files that were written just now count as if they had been there for long."""
    monkeypatch.setattr(files, "UNSETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch):
    """The files that are hashed."""
    hashed, hash_of = [], files.file_hash

    def noted(path):
        hashed.append(path)
        return hash_of(path)

    monkeypatch.setattr(files, "file_hash", noted)
    return hashed


def sixty(folder, kind):
    """A data set of sixty squares in class folders or a table."""
    write_classes(draw_classes(folder))
    return card_of(kind=kind)


# ---------------------------------------------------------------- fingerprints


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("how", ["copied later", "moved", "linked", "touched"])
def test_the_same_files_elsewhere_and_at_another_time_are_the_same_data_set(tmp_path, kind, how):
    card = sixty(tmp_path / "one", kind)
    before = prints(tmp_path / "one", card)
    if how == "moved":
        (tmp_path / "one").rename(tmp_path / "two")
    elif how == "linked":
        (tmp_path / "two").symlink_to(tmp_path / "one", target_is_directory=True)
    else:
        shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    for path in (tmp_path / "two").rglob("*.png") if how == "touched" else ():
        os.utime(path, ns=(10**18, 10**18))
    assert prints(tmp_path / "two", card) == before


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_noisy_copy_with_the_same_names_sizes_and_times_is_another_data_set(tmp_path, kind, settled):
    card = sixty(tmp_path / "clean", kind)
    before = prints(tmp_path / "clean", card)
    shutil.copytree(tmp_path / "clean", tmp_path / "noisy")
    assert prints(tmp_path / "noisy", card) == before
    for path in (tmp_path / "noisy").rglob("*.png"):
        alter(path)
    after = prints(tmp_path / "noisy", card)
    assert all(after[name] != before[name] for name in before)
    for path in (tmp_path / "clean").rglob("*.png"):  # the very files that were hashed
        alter(path)
    assert prints(tmp_path / "clean", card) == after


def test_a_file_is_hashed_once_and_again_when_it_changes(squares, settled, reads):
    before = prints(squares)
    assert len(reads) == len(set(reads)) == 60
    assert prints(squares) == before and len(reads) == 60
    alter(squares / "dark" / "p000_0.png")
    assert prints(squares) != before and len(reads) == 61
    draw(squares / "dark" / "new.png", 20, 99)
    prints(squares)
    assert len(reads) == 62


def test_a_file_of_this_moment_is_not_remembered(tmp_path, reads):
    """It may change once more without another time: clocks of disks tick slowly."""
    draw_classes(tmp_path, each=4)
    assert prints(tmp_path) == prints(tmp_path)
    assert len(reads) == 24


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no folder"])
def test_damaged_hashes_are_made_again(tmp_path, monkeypatch, settled, reads, damage):
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "cache"))
    draw_classes(tmp_path / "data", each=5)
    before = prints(tmp_path / "data")
    (memory,) = (cache_folder() / "file_hashes").iterdir()
    content = memory.read_bytes()
    if damage == "flip":
        for place in np.random.default_rng(0).integers(0, len(content), 40):
            memory.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert prints(tmp_path / "data") == before
    elif damage == "no folder":
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("not a folder")
        assert prints(tmp_path / "data") == before
    else:
        memory.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        assert prints(tmp_path / "data") == before and len(reads) == 30


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "locked"])
def test_what_cannot_be_hashed_is_named(squares, monkeypatch, what):
    images = load_dataset(FOLDER, root=squares).train
    path, error = squares / images.ids[3], ImageError
    path.unlink()
    if what == "missing":
        error = FileNotFoundError
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        draw(path, 100)

        def locked(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(files, "file_hash", locked)
    with pytest.raises(error, match=rf"{path.name}" if what != "locked" else "png.*Permission denied"):
        images.fingerprint  # noqa: B018


def test_groups_are_part_of_what_a_set_is(squares):
    """Intervals and splits follow them. Where each image is its own group, there is nothing to add."""
    whole, by_patient = (
        load_dataset(card_of(kind="folder", group_pattern=pattern), root=squares).train
        for pattern in (None, PATIENTS)
    )
    both = sorted(set(whole.ids) & set(by_patient.ids))
    whole, by_patient = (images.subset([images.ids.index(n) for n in both]) for images in (whole, by_patient))
    assert whole.ids == by_patient.ids and whole.fingerprint != by_patient.fingerprint


def test_the_fingerprints_that_shipped_records_hang_on_stay(tmp_path):
    """Of phantoms and of arrays: they were of the content all along."""
    write_npz(tmp_path / "pneumoniamnist.npz")
    assert load_dataset("phantom-derm", num_shots=2).train.fingerprint.startswith(PHANTOMS)
    assert load_dataset(MNIST, root=tmp_path).test.fingerprint.startswith(ARRAYS)


PHANTOMS, ARRAYS = "68b2fde285006e64", "fe15a95f23346d15"


def test_many_hashes_are_shown_as_they_come(tmp_path, capsys, monkeypatch):
    for i in range(300):
        (tmp_path / f"{i}.png").write_bytes(bytes([i % 256, i // 256]))
    hashes = file_hashes(tmp_path, [f"{i}.png" for i in range(300)])
    assert len(set(hashes)) == 300 and "hashing" not in capsys.readouterr().err
    monkeypatch.setattr(files, "BAR_SECONDS", 0)
    file_hashes(tmp_path, [f"{i}.png" for i in range(300)])
    assert "hashing files" in capsys.readouterr().err


# ---------------------------------------------------------------- the same image twice


def copies(folder, kind):
    """Sixty squares and twelve in test; one of these is in train as well, one under two labels."""
    draw_classes(folder / "train")
    draw_classes(folder / "test", each=4)
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        draw(path, list(LEVELS.values())[i // 4], 100 + i)
    shutil.copy(folder / "train" / "grey" / "p001_2.png", folder / "test" / "grey" / "again.png")
    shutil.copy(folder / "test" / "dark" / "p000_0.png", folder / "test" / "bright" / "no, this.png")
    shutil.copy(folder / "test" / "dark" / "p000_1.png", folder / "test" / "dark" / "twice.png")  # harmless
    if kind == "folder":
        return FOLDER
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*.png"))]
    rows = [(path.as_posix(), path.parts[1], path.parts[0]) for path in paths]
    write_table(folder, rows, ("path", "label", "split"))
    return card_of(kind="csv", columns={"split": "split"})


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_the_same_image_in_two_splits_or_under_two_labels_is_said(tmp_path, kind):
    card = copies(tmp_path, kind)
    data = load_dataset(card, root=tmp_path)
    same = {
        "in two splits": [["train/grey/p001_2.png", "test/grey/again.png"]],
        "under two labels": [["test/bright/no, this.png", "test/dark/p000_0.png"]],
    }
    assert data.record["same_images"] == same and json.dumps(data.record)
    for why in same:
        assert f"the same image {why}: 1; see record['same_images']" in repr(data)
    with pytest.raises(ValueError, match=r"1 in two splits, .*p001_2\.png and .*again\.png; 1 under two"):
        load_dataset(card, root=tmp_path, on_same_image="raise")
    (tmp_path / "test" / "grey" / "again.png").unlink()
    (tmp_path / "test" / "bright" / "no, this.png").unlink()
    skip = {"on_error": "skip"} if kind == "csv" else {}
    data = load_dataset(card, root=tmp_path, on_same_image="raise", **skip)
    assert not any(data.record["same_images"].values()) and "the same image" not in repr(data)
    with pytest.raises(ValueError, match=r"unknown on_same_image 'rise'; did you mean 'raise'"):
        load_dataset(card, root=tmp_path, on_same_image="rise")


def test_the_same_pixels_in_an_array_are_said(tmp_path):
    arrays = write_npz(tmp_path / "pneumoniamnist.npz")
    images, labels = arrays["test_images"].copy(), arrays["test_labels"].copy()
    images[5] = arrays["train_images"][3]
    images[0], labels[0] = images[7], 1 - labels[7]
    images[2, 14] = images[3, 14]  # a row alone
    write_npz(tmp_path / "pneumoniamnist.npz", test_images=images, test_labels=labels)
    data = load_dataset(MNIST, root=tmp_path)
    assert data.record["same_images"] == {
        "in two splits": [["train/3", "test/5"]],
        "under two labels": [["test/0", "test/7"]],
    }
    with pytest.raises(ValueError, match="in two splits"):
        load_dataset(MNIST, root=tmp_path, on_same_image="raise")


def test_few_bytes_are_read_where_sizes_or_middles_differ(tmp_path, reads, monkeypatch):
    """All of a file is read only where size and middle are another's."""
    rng = np.random.default_rng(0)
    for name in LEVELS:
        (tmp_path / name).mkdir()
        for i in range(20):
            (tmp_path / name / f"{i}.png").write_bytes(rng.bytes(1000))
    twin = (tmp_path / "dark" / "0.png").read_bytes()
    (tmp_path / "grey" / "0.png").write_bytes(twin)
    (tmp_path / "grey" / "1.png").write_bytes(twin[:-1] + b"x")
    data = load_dataset(FOLDER, root=tmp_path)
    assert len(reads) == 3
    (pair,) = data.record["same_images"]["under two labels"]
    assert sorted(pair) == ["dark/0.png", "grey/0.png"]


def test_what_cannot_be_read_is_like_no_other(squares):
    (squares / "dark" / "gone.png").symlink_to(squares / "nowhere")
    (squares / "grey" / "gone.png").symlink_to(squares / "nowhere")
    for name in ("dark", "grey"):
        os.mkfifo(squares / name / "pipe.png")
    data = load_dataset(FOLDER, root=squares)
    assert not any(data.record["same_images"].values())


def test_phantoms_are_all_different():
    data = load_dataset("phantom-derm", on_same_image="raise")
    assert not any(data.record["same_images"].values())
