"""What stands in folders: links, folders that are no class content, names and places that cannot be read."""

import json
import os
from pathlib import Path

import pytest

from medvlp.data.cards import DataCard, load_card
from medvlp.data.datasets import load_dataset
from tests.data.squares import FOLDER, LEVELS, card_of, draw, draw_classes, left_out, refused, sizes


def linked(link, target):
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:  # Windows, without the right to make links
        pytest.skip("this system makes no links")


def total(folder, card=FOLDER):
    return sum(sizes(load_dataset(card, root=folder)).values())


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("level", ["base", "split", "class", "patient", "study", "file"])
def test_images_behind_links_are_read_wherever_the_link_stands(tmp_path, level):
    split = ("train",) if level == "split" else ()
    for name in LEVELS:
        for i in range(12):
            draw(Path(tmp_path, "plain", *split, name, f"p{i // 2}", "study", f"{i}.png"), LEVELS[name], i)
    plain, links = tmp_path / "plain", tmp_path / "links"
    depth = {"base": 0, "split": 1, "class": 1, "patient": 2, "study": 3, "file": 4}[level]
    if depth == 0:
        linked(links, plain)
    for path in sorted(plain.glob("/".join("*" * depth))) if depth else []:
        linked(links / path.relative_to(plain), path)
    found, wanted = (load_dataset(FOLDER, root=root) for root in (links, plain))
    assert {n: s.ids for n, s in found.splits.items()} == {n: s.ids for n, s in wanted.splits.items()}
    assert len(found.train) + len(found.val) + len(found.test) == 36
    assert found.test.image(0).size == wanted.test.image(0).size


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_loop_of_links_is_an_error_that_names_it(squares, target):
    (squares / "grey" / "deep").mkdir()
    linked(squares / "grey" / "deep" / "again", Path(target))
    refused(r"grey.deep.again leads back to .*loop", FOLDER, squares)
    assert left_out(FOLDER, squares) == (["grey/deep/again"], 60)


def test_a_folder_that_is_linked_a_second_time_is_read_once(squares):
    linked(squares / "dark" / "latest", squares / "dark" / "2024")
    draw(squares / "dark" / "2024" / "a.png", 20)
    assert total(squares) == 61


def test_a_link_to_nothing_is_no_folder_and_is_named_when_it_is_read(squares):
    linked(squares / "dark" / "gone", squares / "nowhere")
    linked(squares / "dark" / "gone.png", squares / "nowhere.png")
    data = load_dataset(FOLDER, root=squares)
    assert "1 without ending" in repr(data)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        [images.fingerprint for images in data.splits.values()]
    data = load_dataset(FOLDER, root=squares, on_error="skip")
    assert [one["id"] for one in data.record["skipped"]] == ["dark/gone.png"]
    assert len([images.fingerprint for images in data.splits.values()]) == 3


# ---------------------------------------------------------------- folders that are no class content


@pytest.mark.parametrize("word", ["train", "Test", "val", "validation", "dev", "TRAINING"])
def test_a_split_folder_inside_a_class_is_an_error_that_says_what_is_there(squares, word):
    draw(squares / "grey" / word / "a.png", 120)
    draw(squares / "grey" / "more" / word / "b.png", 120)
    refused(rf"grey.*{word} holds 1 image.*it is a split", FOLDER, squares)
    ids, left = left_out(FOLDER, squares)
    assert set(ids) == {f"grey/more/{word}", f"grey/{word}"} and left == 60


def test_classes_divided_into_splits_are_not_pooled(tmp_path):
    for word in ("train", "test"):
        for name in LEVELS:
            draw_classes(tmp_path / name, names=[name], each=4)
            (tmp_path / name / name).rename(tmp_path / name / word)
    refused(r"bright.test holds 4 image.*bright holds 'test', 'train'", FOLDER, tmp_path)


def test_the_split_that_is_read_may_be_named_once_more(tmp_path):
    """An archive unpacked into a folder of its name."""
    draw_classes(tmp_path / "train")
    (tmp_path / "train" / "dark").rename(tmp_path / "inner")
    (tmp_path / "train" / "dark").mkdir()
    (tmp_path / "inner").rename(tmp_path / "train" / "dark" / "training")
    assert total(tmp_path) == 60
    draw(tmp_path / "train" / "dark" / "test" / "a.png", 20)
    refused(r"dark.test holds 1 image", FOLDER, tmp_path)


MASKS = ["masks", "Mask", "lung_masks", "leftMask", "segmentations", "Ground Truth", "ground_truth", "GT"]


@pytest.mark.parametrize("word", [*MASKS, "groundtruth", "annotations", "labels", "overlay", "contours"])
def test_masks_inside_a_class_are_no_images_of_it(squares, word):
    for folder in ("images", word):
        draw(squares / "bright" / "p1" / folder / "a.png", 200)
    refused(rf"{word} holds 1 image.*masks.*p1 holds .*'images'", FOLDER, squares)
    assert left_out(FOLDER, squares) == ([f"bright/p1/{word}"], 61)


def test_what_worked_is_not_refused(squares):
    """A folder of images alone, one of annotations that are no images, a class of masks, a name like one."""
    for folder in ("dark/images", "dark/damasked", "dark/weight", "dark/testicles", "dark/trainees"):
        draw(squares / folder / "a.png", 20)
    (squares / "dark" / "annotations").mkdir()
    (squares / "dark" / "annotations" / "a.xml").write_text("<a/>")
    assert total(squares) == 65
    assert load_dataset(FOLDER, root=squares).record["other_files"] == {".xml": 1}
    for name, other in (("mask", "dark"), ("test", "grey"), ("no mask", "bright")):
        (squares / other).rename(squares / name)
    facts = {"name": "faces", "title": "F", "modality": "a face", "classes": ["mask", "test", "no mask"]}
    assert total(squares, DataCard(**facts, source={"kind": "folder", "splits": {"train": None}})) == 65


@pytest.mark.parametrize(
    ("one", "other"), [("train", "Train"), ("val", "validation"), ("test", "testing"), ("dev", "valid")]
)
def test_two_folders_of_one_split_are_refused(tmp_path, one, other):
    for name in {"train", one, other}:
        draw_classes(tmp_path / name, each=6)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system knows no upper and lower case")
    pair = " and ".join(repr(name) for name in sorted((one, other)))
    refused(rf"{pair} are both .*source, splits", FOLDER, tmp_path)
    if one.casefold() != other.casefold():  # the card decides
        card = card_of(kind="folder", splits={"train": "train", "val": one} | {"test": None})
        if one not in ("train", "test"):
            assert load_dataset(card, root=tmp_path).record["unused_folders"] == [other]


def test_two_folders_of_one_class_are_both_read(squares):
    draw(squares / "DARK" / "a.png", 20)
    draw(squares / "d" / "a.png", 20)
    assert load_dataset(FOLDER, root=squares).summary()["dark"].sum() == 22


# ---------------------------------------------------------------- names and places that cannot be read


def written(path):
    """A file, or a skip where the system cannot have such a name."""
    try:
        draw(path, 20)
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"dark/b\xff.png", r"dark/b\xff.png"),
        (b"dark/p\xe9re/a.png", r"dark/p\xe9re"),
        (b"d\xffrk/a.png", r"d\xffrk"),
    ],
)
def test_a_name_that_is_not_utf_8_is_named_and_can_be_skipped(squares, name, said):
    written(squares / os.fsdecode(name))
    with pytest.raises(ValueError) as caught:
        load_dataset(FOLDER, root=squares)
    message = str(caught.value)
    assert said in message.replace(os.sep, "/") and "UTF-8" in message
    message.encode()  # fit to be printed
    assert left_out(FOLDER, squares) == ([said], 60)
    record = load_dataset(FOLDER, root=squares, on_error="skip").record
    assert json.dumps(record, ensure_ascii=False).encode()


def test_a_folder_outside_the_classes_may_be_called_anything(tmp_path):
    draw_classes(tmp_path / "train")
    written(tmp_path / os.fsdecode(b"n\xfftes") / "a.png")
    (tmp_path / "train" / "dark" / os.fsdecode(b"n\xfftes.txt")).write_text("x")
    data = load_dataset(FOLDER, root=tmp_path)
    assert json.dumps(data.record, ensure_ascii=False).encode()
    assert data.record["unused_folders"] == [r"n\xfftes"] and data.record["other_files"] == {".txt": 1}
    assert total(tmp_path / os.fsdecode(b"n\xfftes") / "..") == 60


@pytest.fixture
def locked(monkeypatch):
    """Make a folder unreadable; also for the superuser, who may read everything."""

    def lock(folder):
        scan = os.scandir

        def scandir(path="."):
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "listdir", lambda path=".": [entry.name for entry in scandir(path)])

    return lock


@pytest.mark.parametrize("place", [".", "train", "train/dark", "train/dark/p1"])
def test_a_folder_that_cannot_be_read_is_named_not_passed_over(tmp_path, locked, place):
    draw_classes(tmp_path / "train")
    draw(tmp_path / "train" / "dark" / "p1" / "a.png", 20)
    locked(tmp_path / place)
    refused(r"the folder .* cannot be read \(Permission denied\)", FOLDER, tmp_path)
    if place == "train/dark/p1":
        assert left_out(FOLDER, tmp_path) == ([place], 60)
    else:  # nothing is left, or no image of a class
        with pytest.raises(ValueError, match="Permission denied|no image of class 'dark'"):
            load_dataset(FOLDER, root=tmp_path, on_error="skip")


@pytest.mark.parametrize("where", ["x" * 5000, "x/" * 2500, "nul\0", "~nobody-of-this-name/data"])
def test_a_place_that_cannot_be_is_not_found(tmp_path, monkeypatch, where):
    table = card_of(kind="csv")
    mnist = card_of(kind="medmnist", flag="pneumoniamnist")
    for card in (FOLDER, table, mnist, "derm7pt", "pneumoniamnist"):  # of "pneumonia" there are features
        for options in ({"root": where}, {"root": tmp_path / where}):
            refused("Give root=", card, error=FileNotFoundError, **options)
        if "\0" not in where:
            monkeypatch.setenv("MEDVLP_DATA", where)
            monkeypatch.setenv("HOME", str(tmp_path))
            refused("Give root=", card, error=FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_card(f"{where}/a.md")
    draw_classes(tmp_path)
    (tmp_path / "labels.csv").write_text(f"path,label\n{where},dark\n")
    with pytest.raises((FileNotFoundError, ValueError), match=r"labels\.csv"):
        load_dataset(table, root=tmp_path)


@pytest.mark.parametrize("split", ["", "train"])
def test_where_root_is_the_parent_of_the_class_folders_the_folder_that_has_them_is_named(tmp_path, split):
    draw_classes(tmp_path / "mine" / split)
    (tmp_path / "another" / "deep").mkdir(parents=True)
    mine = tmp_path / "mine"
    message = rf"no folder in {tmp_path} is a class or a split, but {mine} has some.*give root='{mine}'"
    refused(message, FOLDER, tmp_path, FileNotFoundError)
    assert total(tmp_path / "mine") == 60
