"""Images in files: class folders, or a table that lists them."""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from medvlp.data.card_parts import SPLITS
from medvlp.data.cards import DataCard
from medvlp.data.errors import unknown_name
from medvlp.data.image_sets import Files, ImageSet
from medvlp.data.images import image_suffixes

SPLIT_WORDS = {"training": "train", "train": "train", "testing": "test", "test": "test"} | dict.fromkeys(
    ("dev", "valid", "validation", "val"), "val"
)


class Problems:
    """Raises the first problem, or, with on_error="skip", collects them all."""

    def __init__(self, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(unknown_name("on_error", on_error, ("raise", "skip")))
        self.skip = on_error == "skip"
        self.skipped: list[dict[str, str]] = []

    def add(self, what: str, reason: str, error: type[Exception] = ValueError) -> None:
        """Report that `what` (an id, a row, a folder) cannot be used."""
        if not self.skip:
            raise error(reason)
        self.skipped.append({"id": what, "reason": reason})


def find_folder(card: DataCard, root: str | Path | None, fits: Callable[[Path], bool], expected: str) -> Path:
    """The card's folder: `root` or its sub-folder; by default under MEDVLP_DATA or beside the card.

    FileNotFoundError names the card, what is expected, where it was looked for and how to get it.
    """
    if root is not None:
        starts = [Path(root).expanduser()]
    else:
        starts = [Path(os.environ["MEDVLP_DATA"])] if os.environ.get("MEDVLP_DATA") else []
        starts += [card.path.parent] if card.path else []
    name = getattr(card.source, "folder", ".")
    tried = list(dict.fromkeys(folder for start in starts for folder in (start / name, start)))
    for folder in tried:
        if fits(folder):
            return folder
    looked = ", ".join(str(folder) for folder in tried) or "nowhere"
    raise FileNotFoundError(
        f"card {card.name!r}: its images were not found. Expected: {expected}. Looked in: {looked}. "
        "Give root=... (that folder or its parent) or set the environment variable MEDVLP_DATA. "
        f"How to get them: {card.source.how_to_get or 'the card does not say'}"
    )


def read_folder(
    card: DataCard, root: str | Path | None, problems: Problems
) -> tuple[dict[str, ImageSet], dict]:
    """Images in class folders, with or without split folders above them."""
    source = card.source
    says = "splits" in source.model_fields_set  # else the usual names of split folders are looked for
    split_of = {folder.casefold(): split for split, folder in source.splits.items() if folder}
    split_of = split_of if says else SPLIT_WORDS
    words = {word.casefold() for info in card.classes for word in info.words}

    def fits(folder: Path) -> bool:
        inside = {path.name.casefold() for path in _subfolders(folder)}
        meant = root is not None if source.folder == "." else folder.name == Path(source.folder).name
        return bool(inside & (words | split_of.keys())) or (bool(inside) and meant)

    classes = "' and '".join(card.classnames[:2])
    expected = (
        f"class folders such as '{classes}' (names or aliases), in {source.folder!r} or in its split folders"
    )
    base = find_folder(card, root, fits, expected)
    subfolders = {path.name.casefold(): path for path in _subfolders(base)}
    present = {split: subfolders[name] for name, split in split_of.items() if name in subfolders}
    needed = split_of if says else {"train": "train"}
    missing = [name for name, split in needed.items() if split not in present]
    if present and missing:
        inside = ", ".join(repr(path.name) for path in subfolders.values())
        raise FileNotFoundError(
            f"card {card.name!r}: no split folder {missing[0]!r} in {base}; it has {inside}."
        )
    unused = sorted(set(subfolders.values()) - set(present.values())) if present else []
    parts, others = {}, Counter()
    for split, folder in (present or {"train": base}).items():
        parts[split], more = _read_class_folders(card, split, base, folder, problems)
        others += more
    return parts, {"other_files": dict(others), "unused_folders": [path.name for path in unused]}


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith((".", "__")) and path.is_dir()
    )


def _read_class_folders(
    card: DataCard, split: str, base: Path, folder: Path, problems: Problems
) -> tuple[ImageSet, Counter]:
    """All images under the class folders of one folder, and how many files of which ending are no images."""
    rows, others, suffixes = [], Counter(), image_suffixes()
    for class_folder in _subfolders(folder):
        try:
            label = card.label_of(class_folder.name)
        except ValueError as error:
            advice = "Rename the folder, or add its name to the card as an alias."
            reason = f"class folder {class_folder}: {error} {advice}"
            problems.add(class_folder.relative_to(base).as_posix(), reason)
            continue
        for where, inside, names in os.walk(class_folder):
            inside[:] = sorted(name for name in inside if not name.startswith("."))
            endings = {n: "hidden" if n.startswith(".") else Path(n).suffix.lower() for n in sorted(names)}
            others.update(ending for ending in endings.values() if ending not in suffixes)
            paths = [Path(where, name) for name, ending in endings.items() if ending in suffixes]
            rows += [(path.relative_to(base).as_posix(), label, "", path) for path in paths]
    if not rows:
        raise ValueError(
            f"card {card.name!r}: no images in the class folders of {folder} (other files: "
            f"{listed_files(others)}). An image's name ends as Pillow knows it: .png, .jpg, .tif, ..."
        )
    return _image_set(card, split, rows), others


def listed_files(others: dict[str, int]) -> str:
    """Numbers of files by ending in words, such as "3 .txt, 1 hidden"."""
    return ", ".join(f"{n} {ending or 'without ending'}" for ending, n in sorted(others.items())) or "none"


def _image_set(card: DataCard, split: str, rows: list[tuple[str, int, str, Path]]) -> ImageSet:
    """Images from rows of id, label, group and file.

    A row without a group has the one that the card's pattern finds in the file name, else its id.
    """
    ids, labels, groups, paths = map(list, zip(*rows, strict=True))
    pattern = card.source.group_pattern
    for i, name in enumerate(ids):
        match = re.search(pattern, name.rsplit("/", 1)[-1]) if pattern else None
        groups[i] = groups[i] or (match and match[1]) or name
    return ImageSet(card, split, ids, torch.tensor(labels), groups, Files(paths))


def read_csv(card: DataCard, root: str | Path | None, problems: Problems) -> tuple[dict[str, ImageSet], dict]:
    """Images listed in a table. Rows are counted as lines of the file: the header is line 1."""
    source, columns = card.source, card.source.columns
    base = find_folder(
        card, root, lambda folder: (folder / source.file).is_file(), f"the table {source.file!r}"
    )
    file = base / source.file
    try:
        table = pd.read_csv(
            file, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig"
        )
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"cannot read the table {file}: {error}") from error
    for role, column in columns.items():
        if column and column not in table.columns:
            hint = unknown_name("column", column, table.columns, where=str(file))
            raise ValueError(f"{hint} Name the {role} column in the card under source, columns.")
    rows: dict[str, list[tuple[str, int, str, Path]]] = {split: [] for split in SPLITS}
    lines: dict[Path, int] = {}  # where each image is listed
    for number, row in enumerate(table.map(str.strip).to_dict("records"), start=2):
        name, where = row[columns["path"]], f"line {number} of {file}"
        path = base / name
        try:
            label = label_from(card, row[columns["label"]])
            split = _split_name(row[columns["split"]]) if columns["split"] else "train"
        except ValueError as error:
            problems.add(name, f"{where}: {error}")
            continue
        if not name or not path.is_file():
            problems.add(name, f"{where}: there is no image file {path}.", FileNotFoundError)
        elif path in lines:
            problems.add(name, f"{where}: the image {name!r} is already in line {lines[path]}.")
        else:
            lines[path] = number
            group = row[columns["group"]] if columns["group"] else ""
            rows[split].append((Path(name).as_posix(), label, group, path))
    if not rows["train"]:
        raise ValueError(f"the table {file} names no image for train.")
    return {split: _image_set(card, split, rows[split]) for split in SPLITS if rows[split]}, {}


def label_from(card: DataCard, text: str) -> int:
    """Label written as a class name, an alias or a number; ValueError names the choices.

    A number is the alias that says so, or, where no alias is a number, the label itself.
    """
    if not _is_number(text):
        return card.label_of(text)
    words = [(word, label) for label, info in enumerate(card.classes) for word in info.words]
    codes = {int(word): label for word, label in words if _is_number(word)} or {i: i for _, i in words}
    if int(text) not in codes:
        named = ", ".join(f"{code} {card.classnames[label]}" for code, label in sorted(codes.items()))
        raise ValueError(f"label {text} is out of range; card {card.name!r} has {named}.")
    return codes[int(text)]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def _split_name(text: str) -> str:
    split = SPLIT_WORDS.get(text.casefold())
    if split is None:
        raise ValueError(unknown_name("split", text, SPLITS))
    return split
