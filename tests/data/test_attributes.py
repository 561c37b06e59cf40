"""Attributes that experts noted: read from tables, said of phantoms, and how far two experts agree."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medvlp
from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset

CARD = """---
name: dots
title: Dots on a ground
modality: a drawing
source:
  kind: csv
  file: {train: train.csv, test: test.csv}
  second_file: again.csv
classes:
  - {name: plain, aliases: [P], knowledge: {symptoms: [{text: nothing on it, claims: {dots: "no"}}]}}
  - {name: dotted, knowledge: {symptoms: [{text: red or blue dots, claims: {colour: [red, blue]}}]}}
attributes:
  - {name: dots, values: {"yes": some dots, "no": [nothing on it, an empty ground]}}
  - {name: colour, column: col, values: {red: red dots, blue: blue dots, nil: no colour}}
  - {name: size, values: {1: small, 2: big}}
---
"""
TRAIN = """path,label,dots,col,size
0.png,P,no,nil,1
1.png,dotted,yes,red,2
2.png,dotted,Yes,blue,
3.png,plain,no,nil,2
4.png,plain,,nil,1
5.png,dotted,yes,red,1
"""
TEST = "size,col,dots,label,path\n2,blue,yes,dotted,6.png\n1,nil,no,plain,7.png\n"
AGAIN = "path,dots,col,size\n1.png,yes,blue,2\n3.png,no,nil,2\n5.png,yes,red,2\n6.png,yes,blue,\n"


@pytest.fixture
def write(tmp_path):
    """Write a card, its tables and images, with words exchanged in each; the card's path."""

    def write_all(card=(), train=(), again=()):
        files = {"card.md": (CARD, card), "train.csv": (TRAIN, train), "again.csv": (AGAIN, again)}
        for name, (text, changes) in (files | {"test.csv": (TEST, ())}).items():
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            (tmp_path / name).write_text(text)
        for i in range(8):
            Image.new("RGB", (4, 4), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
        return tmp_path / "card.md"

    return write_all


def test_a_table_of_attributes_a_split(write):
    data = load_dataset(write())
    shown = pd.concat([images.attributes for images in data.splits.values()]).sort_index()
    assert shown.index.tolist() == [f"{i}.png" for i in range(8)]
    assert shown["dots"].cat.categories.tolist() == ["yes", "no"]
    assert shown["colour"].tolist() == ["nil", "red", "blue", "nil", "nil", "red", "blue", "nil"]
    assert shown["dots"].tolist()[:4] == ["no", "yes", "yes", "no"] and pd.isna(shown["dots"].iloc[4])
    assert shown["size"].isna().tolist() == [i == 2 for i in range(8)]
    part = data.train.subset([2, 0])
    assert part.attributes.index.tolist() == part.ids == [data.train.ids[2], data.train.ids[0]]
    assert part.annotations[1].index.tolist() == part.ids
    flipped = data.of_classes(["dotted", "plain"]).test
    assert flipped.attributes.equals(data.test.attributes)


def test_images_without_attributes_have_none():
    card = medvlp.load_card("pneumonia")
    assert card.attributes == []
    images = medvlp.load_dataset("phantom-derm", num_shots=1).test
    assert images.subset([]).attributes.shape == (0, len(images.world.attributes))


@pytest.mark.parametrize(
    ("where", "old", "new", "says"),
    [
        ("train", "dotted,Yes", "dotted,yess", r"line 4 of .*train\.csv: unknown value of 'dots' 'yess'; .*"),
        ("train", "dots,col", "dots,coll", r"unknown column 'col' in .*train\.csv; did you mean 'coll'"),
        ("train", "3.png,plain", "6.png,plain", r"line 2 of .*test\.csv: the image '6\.png' is already in"),
        ("again", "3.png,no", "9.png,no", r"line 3 of .*again\.csv: no image '9\.png' is in"),
        ("again", "3.png,no", "1.png,no", r"line 3 of .*again\.csv: the image '1\.png' is there twice"),
        ("again", "blue,2", "green,2", r"line 2 of .*again\.csv: unknown value of 'colour' 'green'"),
        ("card", 'dots: "no"', 'dot: "no"', r"unknown attribute 'dot' in class 'plain', .*mean 'dots'"),
        ("card", "blue]}", "pink]}", r"unknown value of 'colour' 'pink' in class 'dotted'.*'nil'"),
        ("card", '{"yes": some', "{yes: some", r"attribute 'dots', values: .*quote it"),
        ("card", "{1: small, 2: big}", "{1: small}", r"attribute 'size', values: .*at least 2"),
        ("card", "name: size", "name: dots", r"two attributes are called 'dots'"),
        ("card", "column: col", "colum: col", r"unknown field 'colum' in attribute 'colour'"),
        ("card", "kind: csv", "kind: folder", r"unknown field 'file' in source"),
        ("card", "{train: train.csv", "{val: train.csv", r"there is one for train"),
    ],
)  # fmt: skip
def test_bad_attributes_are_refused(write, where, old, new, says):
    with pytest.raises(ValueError, match=says):
        load_dataset(write(**{where: [(old, new)]}))


def test_attributes_need_a_table_and_a_second_table_needs_attributes(tmp_path):
    front = CARD.replace("kind: csv", "kind: folder").replace(
        "  file: {train: train.csv, test: test.csv}\n", ""
    )
    (tmp_path / "card.md").write_text(front.replace("  second_file: again.csv\n", ""))
    with pytest.raises(ValueError, match="attributes are read from a table, and a source of kind 'folder'"):
        load_card(tmp_path / "card.md")
    bare = re.sub(r"attributes:\n(  - .*\n)+", "", CARD)
    (tmp_path / "card.md").write_text(re.sub(r", claims: \{.*?\}\}", "}", bare))
    with pytest.raises(ValueError, match="second_file has what another expert noted"):
        load_card(tmp_path / "card.md")


def test_bad_rows_are_left_out_and_listed(write):
    data = load_dataset(write(train=[("2.png,dotted,Yes", "2.png,dotted,perhaps")]), on_error="skip")
    assert [one["id"] for one in data.record["skipped"]] == ["2.png"]
    assert len(data.train) + len(data.val) == 5


def test_two_experts_agree_as_far_as_they_do(write):
    data = load_dataset(write())
    both = pd.concat([images.annotations[1] for images in data.splits.values()]).sort_index()
    assert both["colour"].tolist()[1] == "blue" and both["colour"].isna().sum() == 4
    with warnings.catch_warnings(action="error"):
        table = medvlp.attribute_agreement(data.test)
    assert table.loc["colour", ["images", "agreement"]].tolist() == [1, 1.0]
    assert table.loc["size", "images"] == 0 and np.isnan(table.loc["size", "agreement"])
    with pytest.raises(ValueError, match="card 'phantom-cxr' has no second table of attributes"):
        medvlp.attribute_agreement(medvlp.load_dataset("phantom-cxr", num_shots=1).test)


@pytest.fixture(scope="module")
def cells(data_root):
    return load_dataset("wbcatt", data_root)


def counts(data):
    return {name: list(images.counts.values()) for name, images in data.splits.items()}


def test_real_cells(cells):
    """The numbers of the published splits, and the agreement that was measured on all 1,000 cells."""
    train, val, test = [1984, 1876, 744, 736, 829], [334, 314, 125, 111, 146], [1011, 927, 349, 367, 445]
    assert counts(cells) == {"train": train, "val": val, "test": test}
    shown = pd.concat([images.attributes for images in cells.splits.values()])
    assert shown.shape == (10_298, 11) and shown.notna().all(axis=None)
    agree = medvlp.attribute_agreement(cells.test)
    assert agree["images"].eq(304).all()
    assert agree.loc["nucleus shape", "agreement"] == pytest.approx(0.872, abs=5e-4)
    assert agree.loc["nucleus shape", "kappa"] == pytest.approx(0.845, abs=5e-4)
    bands = cells.train.attributes["nucleus shape"][cells.train.labels.numpy() == 0]  # of neutrophils
    assert bands.eq("unsegmented-band").mean() == pytest.approx(0.67, abs=5e-3)


WHICH = "  second_file: again.csv\n"
ROWS = WHICH + "  rows: {label: [plain, Dotted], col: [nil, red]}\n"


def test_a_card_may_mean_some_rows_only(write):
    """The others are counted, by the first column that does not fit, and may stand in the second table."""
    more = ("5.png,dotted,yes,red,1", "5.png,dotted,yes,red,1\n8.png,unknown,yes,red,7")
    data = load_dataset(write(card=[(WHICH, ROWS)], train=[more], again=[("5.png,yes", "8.png,yes")]))
    ids = [i for images in data.splits.values() for i in images.ids]
    assert sorted(ids) == [f"{i}.png" for i in (1, 3, 4, 5, 7)]
    assert data.record["other_rows"] == {"col: blue": 2, "label: P": 1, "label: unknown": 1}
    assert "rows that the card does not mean, left out: 2 col: blue, 1 label: P" in repr(data)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[nil, red]", "[nil, redd]", r"unknown value of 'col' 'redd' in train\.csv and .*mean 'red'"),
        ("col: [nil, red]", "colour: red", r"unknown column 'colour' in .*train\.csv"),
        ("[plain, Dotted]", "[plain, yes]", r"source, rows, label, entry 2: .*quote it"),
        ("{label: [plain, Dotted], col: [nil, red]}", "[plain]", r"source, rows: "),
    ],
)
def test_rows_that_a_card_cannot_mean(write, old, new, says):
    assert old in ROWS
    with pytest.raises(ValueError, match=says):
        load_dataset(write(card=[(WHICH, ROWS.replace(old, new))]))


def test_neutrophils_by_the_shape_of_their_nucleus(cells, data_root):
    data = load_dataset("neutrophil-maturity", data_root)
    assert counts(data) == {"train": [1335, 625], "val": [224, 107], "test": [667, 333]}
    others = data.record["other_rows"]
    assert sum(others.values()) == 10_298 - 3_291
    assert sum(n for why, n in others.items() if why.startswith("nucleus_shape")) == 38
    rows = [cells.test.ids.index(i) for i in data.test.ids]
    assert data.test.attributes.equals(cells.test.subset(rows).attributes)
    twice = medvlp.attribute_agreement(data.train)
    assert twice.loc["nucleus shape", "kappa"] < 0.8  # of all cells together .88
