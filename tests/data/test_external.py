"""Images of another site, all of them for testing, with the card of the training images."""

import re

import pytest

from medvlp.data.cards import DataCard, load_card
from medvlp.data.datasets import load_dataset
from tests.data.squares import FOLDER, LEVELS, MISSING, card_of, draw_classes, refused, sizes, write_classes

ADVICE = re.escape("load them with test_only=True.")
ONLY = {"train": 0, "val": 0, "test": 18}


@pytest.fixture
def few(tmp_path):
    """Class folders of six images each, and a table of them."""
    write_classes(draw_classes(tmp_path, each=6))
    return tmp_path


@pytest.mark.parametrize(
    "splits", [None, {"train": "train", "val": "val", "test": "holdout"}, {"train": "train"}]
)
def test_folders_with_only_test_images(tmp_path, splits):
    """In a test folder, or in class folders alone, whatever the card calls the folders of its own splits."""
    card = card_of(kind="folder", **({"splits": splits} if splits else {}))
    draw_classes(tmp_path / "a" / "test", each=6)
    draw_classes(tmp_path / "b", each=6)
    for site in ("a", "b"):
        data = load_dataset(card, root=tmp_path / site, test_only=True)
        assert sizes(data) == ONLY
        assert data.test.split == "test" and data.test.counts == dict.fromkeys(LEVELS, 6)
        assert data.record["splits"]["train"]["made"] == "empty: test_only"
        assert data.record["splits"]["test"]["made"] == "given"
        assert data.summary()["total"].tolist() == [0, 0, 18] and "test" in repr(data)
    if not splits:
        refused(f"no split folder 'train' in .*; it has 'test'. .*{ADVICE}", card, tmp_path / "a", MISSING)


def test_other_splits_of_a_folder_are_left_out_and_named(tmp_path):
    draw_classes(tmp_path / "train")
    refused("no split folder 'test' in .*; it has 'train'.$", FOLDER, tmp_path, MISSING, test_only=True)
    draw_classes(tmp_path / "test", each=6)
    data = load_dataset(FOLDER, root=tmp_path, test_only=True)
    assert sizes(data) == ONLY and data.record["unused_folders"] == ["train"]


def test_a_table_of_test_images_needs_no_split_column(few):
    card = card_of(kind="csv", columns={"split": "split"})
    assert sizes(load_dataset(card, root=few, test_only=True)) == ONLY
    refused("unknown column 'split'", card, few)
    write_classes(few, split="test")
    assert sizes(load_dataset(card, root=few, test_only=True)) == ONLY
    refused(f"labels.csv names no image for train. .*{ADVICE}", card, few)
    write_classes(few, split="train")
    refused("labels.csv names no image for test.$", card, few, test_only=True)


def test_of_a_table_for_each_split_that_of_test_will_do(few):
    both = card_of(kind="csv", file={"train": "a.csv", "test": "labels.csv"})
    assert sizes(load_dataset(both, root=few, test_only=True)) == ONLY
    one = card_of(kind="csv", file={"train": "labels.csv"})
    refused("unknown table 'test'", one, few, test_only=True)


def test_another_site_need_not_have_noted_what_the_card_asks_for(few):
    facts = {"name": "n", "title": "N", "modality": "m", "classes": list(LEVELS)}
    attributes = [{"name": "edge", "values": {"sharp": "a sharp edge", "soft": "a soft edge"}}]
    source = {"kind": "csv", "second_file": "again.csv"}
    card = DataCard(**facts, attributes=attributes, source=source)
    test = load_dataset(card, root=few, test_only=True).test
    assert test.attributes["edge"].isna().all() and len(test.attributes) == 18


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_where_another_site_has_no_patients_of_the_cards_kind_that_is_told(few, kind):
    rule = {"group_pattern": r"^(person\d+)"} if kind == "folder" else {"columns": {"group": "patient"}}
    data = load_dataset(card_of(kind=kind, **rule), root=few, test_only=True)
    assert data.record["without_group"] == 18 == len(set(data.test.groups))
    assert "in no group, each image its own: 18 image(s)" in repr(data)
    assert load_dataset(card_of(kind=kind), root=few, test_only=True).record["without_group"] == 0


def test_phantoms_and_pictures_that_are_not_here_can_be_for_testing_only(monkeypatch):
    monkeypatch.delenv("MEDVLP_DATA", raising=False)
    data = load_dataset("wbcatt", test_only=True)
    assert sizes(data) == {"train": 0, "val": 0, "test": 3_099}
    whole = load_dataset("phantom-cxr-shifted")
    data = load_dataset(load_card("phantom-cxr-shifted"), test_only=True)
    assert sizes(data)["train"] == 0 and data.test.fingerprint == whole.test.fingerprint


def test_there_are_no_shots_of_test_images(squares):
    refused("no training images to cut to num_shots", FOLDER, squares, test_only=True, num_shots=4)
