"""A text of any length in a card or a table is shortened in what errors say of it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medvlp.data.cards import DataCard, _validated, load_card
from medvlp.data.datasets import load_dataset

LONG = "word " * 2_000
SHOWN = 3000  # letters of an error at most
FRONT = yaml.safe_load("""
name: small
title: Small
modality: a photo
licence: none
citation: none
templates: ["a photo of {}."]
classes:
- {name: mel, aliases: [m], knowledge: {symptoms: [{text: dark border, claims: {colour: [red]}}, ragged]}}
- {name: nevus, aliases: [n], knowledge: {symptoms: [round, {text: even, claims: {colour: blue}}]}}
attributes:
- {name: colour, values: {red: [red skin], blue: [blue skin]}, column: col}
source:
  {kind: csv, folder: ".", file: labels.csv, second_file: second.csv, group_pattern: "(p[0-9])",
   columns: {path: path, label: label, split: split, group: null}}
""")
HEADER = ["path", "label", "split", "col"]
ROWS = [
    [f"p{i}.png", ["mel", "nevus"][i % 2], ["train", "val", "test"][i // 4], ["red", "blue"][i % 2]]
    for i in range(12)
]


def planted(node: Any) -> Iterator[Any]:
    """Copies of some YAML, each with a long text at one place: as the value, within it, and as the key."""
    if isinstance(node, dict):
        for key in node:
            yield from ({**node, key: one} for one in planted(node[key]))
            yield {LONG if one == key else one: value for one, value in node.items()}
    elif isinstance(node, list):
        for i in range(len(node)):
            yield from (node[:i] + [one] + node[i + 1 :] for one in planted(node[i]))
    yield from ([LONG], {LONG: LONG}, LONG, "a{" + LONG)


def errors(front: Any, folder) -> Iterator[Exception]:
    """What a card says that is no good, and what goes wrong where one is good and used."""
    try:
        card = _validated(front, "card.md")
    except ValueError as error:
        yield error
        return
    uses = [
        lambda: load_dataset(card, root=folder),
        lambda: card.label_of("unknown"),
        lambda: card.symptoms("unknown"),
        lambda: card.with_classes([card.classnames[0]] * 2),
        lambda: card.with_knowledge("new", {card.classnames[0]: ["a"]}),
        lambda: card.with_knowledge("symptoms", {}),
        lambda: card.with_knowledge(LONG, {LONG: [LONG]}),
    ]
    for use in uses:
        try:
            use()
        except (ValueError, FileNotFoundError) as error:
            yield error


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / row[0])
    write(tmp_path, "labels.csv", [HEADER, *ROWS])
    write(tmp_path, "second.csv", [HEADER, *ROWS[:4]])
    return tmp_path


def write(folder, name: str, rows: list[list[str]]) -> None:
    (folder / name).write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")


def test_anywhere_in_a_card(tmp_path):
    seen = [str(error) for front in planted(FRONT) for error in errors(front, tmp_path / "nowhere")]
    assert len(seen) > 300 and max(map(len, seen)) < SHOWN
    assert sum("word word" in words for words in seen) > 100


@pytest.mark.parametrize(
    ("name", "column"),
    [*(("labels.csv", column) for column in range(5)), *(("second.csv", column) for column in (0, 3))],
)
def test_in_every_column_of_a_table(folder, name, column):
    rows = [HEADER, *ROWS[: 4 if name == "second.csv" else None]]
    write(folder, name, [*rows[:2], [*rows[2][:column], LONG, *rows[2][column + 1 :]], *rows[3:]])
    with pytest.raises((ValueError, FileNotFoundError), match="word word") as raised:
        load_dataset(DataCard.model_validate(FRONT), root=folder)
    assert len(str(raised.value)) < SHOWN


def test_in_a_path(folder):
    for path in ("a" * 3000, "a/" * 1500, folder / ("a" * 5000)):
        with pytest.raises(FileNotFoundError) as raised:
            load_dataset(load_card("pneumonia"), root=path)
        assert len(str(raised.value)) < SHOWN
