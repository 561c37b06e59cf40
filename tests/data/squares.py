"""A small data set of three classes that differ in brightness, in class folders or in a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data, load_dataset

LEVELS = {"dark": 20, "grey": 120, "bright": 220}
COLUMNS = {"path": "path", "label": "label", "split": "split", "group": "patient"}
ROW = tuple(COLUMNS.values())
PATIENTS = r"^(p\d+)_"
MISSING = FileNotFoundError


def card_of(aliases="DGB", **source) -> DataCard:
    classes = [{"name": name, "aliases": [alias]} for name, alias in zip(LEVELS, aliases, strict=True)]
    return DataCard(name="brightness", title="Squares", modality="a square", classes=classes, source=source)


FOLDER, TABLE = card_of(kind="folder"), card_of(kind="csv", columns=COLUMNS)


def draw(path: Path, level: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-9, 10, (12, 10))
    Image.fromarray((level + noise).astype(np.uint8)).save(path)


def draw_classes(folder: Path, each: int = 20, names=LEVELS) -> Path:
    """Class folders with `each` images, two of each patient."""
    for name in names:
        for i in range(each):
            draw(folder / name / f"p{i // 2:03d}_{i}.png", LEVELS[name.lower()], i)
    return folder


def write_table(folder: Path, rows, columns=ROW, name: str = "labels.csv") -> None:
    pd.DataFrame(rows, columns=list(columns)).to_csv(folder / name, index=False)


def write_classes(folder: Path, name: str = "labels.csv", **more: str) -> None:
    """A table of the images in class folders, with these columns more, each of one value."""
    paths = [path for label in LEVELS for path in sorted((folder / label).rglob("*.png"))]
    rows = [[path.relative_to(folder).as_posix(), path.relative_to(folder).parts[0]] for path in paths]
    write_table(folder, [[*row, *more.values()] for row in rows], ("path", "label", *more), name)


def rows_of(folder: Path) -> list[list[str]]:
    """Draw twelve images, four in each split; their rows, with labels by name, alias and number."""
    rows = []
    for i in range(12):
        name = list(LEVELS)[i % 3]
        draw(folder / "images" / f"{i}.png", LEVELS[name])
        label = (name.upper(), name[0], str(i % 3))[i % 2 if i < 9 else 2]
        rows.append([f"images/{i}.png", label, ("train", "Train", "valid", "TEST")[i // 3], f"s{i // 2}"])
    return rows


def refused(message: str, card: DataCard | str, root=None, error=ValueError, **options) -> None:
    with pytest.raises(error, match=message):
        load_dataset(card, root, **options)


def sizes(data: Data) -> dict[str, int]:
    return {name: len(images) for name, images in data.splits.items()}


def ids_of(data: Data) -> dict[str, list[str]]:
    return {name: images.ids for name, images in data.splits.items()}


def left_out(card: DataCard, root: Path, **options) -> tuple[list[str], int]:
    """The ids that are skipped on error, and how many images are left."""
    data = load_dataset(card, root, on_error="skip", **options)
    return [one["id"] for one in data.record["skipped"]], sum(sizes(data).values())
