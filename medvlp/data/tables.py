"""Images that a table lists, one a row, with what experts noted of them."""

import csv
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medvlp.data.card_parts import SPLITS, CsvSource
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice, listed, unknown_name
from medvlp.data.files import as_word, composed, on_disk, short
from medvlp.data.folders import SPLIT_WORDS, TEST_ONLY, Problems, find_folder, image_set
from medvlp.data.image_sets import ImageSet
from medvlp.data.tensor_files import Shipped, is_shipped

DELIMITERS = ",;\t|"  # between the columns of a table
Row = dict[str, str]  # a row's values by column
Noted = dict[str, str | None]  # what an expert noted of one image, by attribute; None where nobody looked


def read_csv(
    card: DataCard, root: str | Path | None, problems: Problems, test_only: bool = False
) -> tuple[dict[str, ImageSet], dict]:
    """Images listed in a table, or in one for each split. Rows are counted as lines: the header is line 1.

    With `test_only` the table may lack the columns of split, group and attributes.
    """
    source, asked, first = card.source, tables_of(card, test_only), "test" if test_only else "train"
    tables = source.file if isinstance(source.file, dict) else {"": source.file}
    base = find_folder(
        card,
        root,
        lambda folder: all(table_is_there(on_disk(folder, name)) for name in asked),
        "the table " + " and ".join(map(brief, asked)),
    )
    rows: dict[str, list[tuple[str, int, str]]] = {split: [] for split in SPLITS}
    noted: dict[Path, Noted] = {}
    found_in: dict[Path, str] = {}  # where each image is listed
    others: dict[Path, str] = {}  # images that are not meant, and why
    shipped = {base / name for name in Shipped.read(base).names} if is_shipped(base) else None
    split_column, group_column = source.columns["split"], source.columns["group"]
    needed = {source.columns["path"]: "path"} | dict.fromkeys(source.rows, "rows")
    needed |= dict.fromkeys(source.label_columns or [source.columns["label"]], "label")
    if not test_only:
        needed |= {attribute.column: f"attribute {attribute.name}" for attribute in card.attributes}
        needed |= {source.columns[role]: role for role in ("split", "group") if source.columns[role]}
    words = SPLIT_WORDS | {as_word(word): split for word, split in source.split_words.items()}
    numbers = _numbers(card, base)
    seen: dict[str, set[str]] = {column: set() for column in source.rows}
    for split_of_table, name_of_table in tables.items():
        file = on_disk(base, name_of_table)
        if not table_is_there(file):
            continue  # of a split that is not asked for
        for i, (number, row, extra) in enumerate(read_table(file, needed)):
            name, where = _image_file(card, base, row), f"line {number} of {file}"
            path = on_disk(base, name)
            for column in source.rows:
                seen[column].add(row[column])
            if other := _other(card, row):
                others[path] = other
                continue
            try:
                if extra:
                    raise ValueError(f"it has more values than the header, such as {brief(extra)}.")
                label = label_from(card, _label(card, row))
                written = numbers.get(f"{i}", f"of row {i}") if numbers else row.get(split_column)
                split = split_of_table or first if written is None else words.get(as_word(written))
                if split is None:
                    raise ValueError(unknown_name("split", written, SPLITS))
                noted_here = _noted(card, row)
                if not (os.path.isfile(path) if shipped is None else path in shipped):
                    raise FileNotFoundError(f"there is no image file {short(base / name)}.")
                if path in found_in:
                    raise ValueError(f"the image '{short(name)}' is already in {found_in[path]}.")
            except (ValueError, FileNotFoundError) as error:
                problems.add(name, f"{where}: {error}", type(error))
                continue
            found_in[path] = f"line {number}" if len(tables) == 1 else where
            inside = path.relative_to(base) if path.is_relative_to(base) else path
            rows[split].append((inside.as_posix(), label, composed(row.get(group_column, ""))))
            noted[path] = noted_here
    for column, values in source.rows.items():
        for value in values:
            if as_word(value) not in map(as_word, seen[column]):
                where = f"{' and '.join(tables.values())}, which the card asks for under source, rows"
                check_choice(f"value of {brief(column)}", value, sorted(seen[column]), where)
    if not rows[first]:
        table, advice = on_disk(base, asked[0]), TEST_ONLY if rows["test"] else ""
        raise ValueError(f"the table {table} names no image for {first}.{advice}")
    parts = {split: image_set(card, split, base, rows[split]) for split in SPLITS if rows[split]}
    experts = [noted] if card.attributes else []
    if source.second_file and table_is_there(on_disk(base, source.second_file)):
        experts.append(_second_notes(card, base, found_in.keys() | others.keys(), problems))
    parts = {split: _annotated(images, base, experts) for split, images in parts.items()}
    return parts, {"other_rows": dict(Counter(others.values()).most_common())}


def tables_of(card: DataCard, test_only: bool = False) -> list[str]:
    """The names of the tables that a card needs; [] for one that has none."""
    if not isinstance(card.source, CsvSource):
        return []
    file = card.source.file
    if test_only:
        file = {"test": file} if isinstance(file, str) else file
        check_choice("table", "test", file, f"card {card.name!r}, source, file")
        return [file["test"]]
    more = [*filter(None, [card.source.second_file]), *card.source.split_rows.values()]
    return [*(file.values() if isinstance(file, dict) else [file]), *more]


def _other(card: DataCard, row: Row) -> str | None:
    """The first "column: value" by which a row is none of those that the card means; None for one that is."""
    for column, values in card.source.rows.items():
        if as_word(row[column]) not in map(as_word, values):
            return f"{column}: {row[column]}"
    return None


def _noted(card: DataCard, row: Row) -> Noted:
    """What a row says of the card's attributes; ValueError for a value that the card does not have."""
    noted = {}
    for attribute in card.attributes:
        text, values = row.get(attribute.column, ""), {as_word(value): value for value in attribute.values}
        value = text if text in attribute.values else values.get(as_word(text))
        if text and value is None:
            raise ValueError(unknown_name(f"value of {brief(attribute.name)}", text, attribute.values))
        noted[attribute.name] = value
    return noted


def _second_notes(card: DataCard, base: Path, images: set[Path], problems: Problems) -> dict[Path, Noted]:
    """What another expert noted, by the image's file."""
    path_column, file, notes = card.source.columns["path"], on_disk(base, card.source.second_file), {}
    needed = {path_column: "path"} | {one.column: f"attribute {one.name}" for one in card.attributes}
    for number, row, _ in read_table(file, needed):
        name, path = row[path_column], on_disk(base, _image_file(card, base, row))
        try:
            if path not in images:
                raise ValueError(f"no image '{short(name)}' is in {card.source.file}.")
            if path in notes:
                raise ValueError(f"the image '{short(name)}' is there twice.")
            notes[path] = _noted(card, row)
        except ValueError as error:
            problems.add(name, f"line {number} of {file}: {error}")
    return notes


def _annotated(images: ImageSet, base: Path, experts: list[dict[Path, Noted]]) -> ImageSet:
    """The images with what each expert noted: a table with a categorical column for each attribute."""
    kinds = {one.name: pd.CategoricalDtype(list(one.values)) for one in images.card.attributes}
    notes = [[noted.get(base / name, {}) for name in images.store.names] for noted in experts]
    tables = [pd.DataFrame(rows, images.ids, list(kinds), dtype=object).astype(kinds) for rows in notes]
    return replace(images, annotations=tuple(tables))


def label_from(card: DataCard, text: str) -> int:
    """Label written as a class name, an alias or a number; ValueError names the choices.

    A number is the alias that says so, or, where no alias is a number, the label itself. 1.0 is 1.
    """
    labels, number = card.labels, re.fullmatch(r"(-?[0-9]+)(?:[.,]0*)?", text)
    if not number or as_word(text) in map(as_word, labels):
        return card.label_of(text)
    codes = {int(word): label for word, label in labels.items() if re.fullmatch("-?[0-9]+", word)}
    codes = codes or {label: label for label in labels.values()}
    if int(number[1]) not in codes:
        named = ", ".join(f"{code} {card.classnames[label]}" for code, label in sorted(codes.items()))
        raise ValueError(f"label {text} is out of range; card {card.name!r} has {named}.")
    return codes[int(number[1])]


def _numbers(card: DataCard, base: Path) -> dict[str, str]:
    """The split of each row by its number, as tables of a split's row numbers have it; {} where none is."""
    splits: dict[str, str] = {}
    for split, name in card.source.split_rows.items():
        if table_is_there(file := on_disk(base, name)):
            splits |= {row["indexes"]: split for _, row, _ in read_table(file, {"indexes": "row number"})}
    return splits


def _image_file(card: DataCard, base: Path, row: Row) -> str:
    """The path of a row's image within the card's folder."""
    names = [name.replace("{}", row[card.source.columns["path"]]) for name in card.source.image_files]
    return next((name for name in names[:-1] if os.path.isfile(on_disk(base, name))), names[-1])


def _label(card: DataCard, row: Row) -> str:
    """The label in a row's column or, where each class has a column, the name of the one with a 1."""
    columns = card.source.label_columns
    marked = [column for column in columns if re.fullmatch(r"1([.,]0*)?", row[column])]
    if columns and len(marked) != 1:
        raise ValueError(f"{len(marked)} of the columns {listed(columns)} have a 1; expected one of them.")
    return marked[0] if columns else row[card.source.columns["label"]]


def table_is_there(file: Path) -> bool:
    """Whether `read_table` finds a table: the file, or FILE.gz."""
    return os.path.isfile(file) or os.path.isfile(f"{file}.gz")


def read_table(file: Path, needed: dict[str, str]) -> Iterator[tuple[int, dict[str, str], str]]:
    """Each row's line in the file, its values by column, stripped, and what stands beyond the columns.

    `needed` says what each column that must be there is for. Columns are parted by comma, semicolon, tab or
    |: by what the header has most of them with. Commas at the end of a line are nothing. Without such a file
    FILE.gz will do. A .json file, a list of objects, is read as the table that it would be.
    """
    try:
        packed = not file.exists() and table_is_there(file)
        raw = gzip.decompress(Path(f"{file}.gz").read_bytes()) if packed else file.read_bytes()
        text = raw.decode("utf-8-sig")
        if file.suffix == ".json":
            text = pd.DataFrame(json.loads(text)).to_csv(index=False)
        tables = {mark: _rows(text, mark) for mark in DELIMITERS}
        headers = {mark: [composed(name) for name in next(rows)[1]] for mark, rows in tables.items()}
        mark = max(DELIMITERS, key=lambda mark: len(needed.keys() & headers[mark]))
        header = headers[mark]
        for column, role in needed.items():
            if column not in header:
                hint = unknown_name("column", column, header, where=str(file))
                raise ValueError(f"{hint} Name the {role} column in the card.")
        place = {column: header.index(column) for column in header}
        for line, row in tables[mark]:
            values = {column: row[i] if i < len(row) else "" for column, i in place.items()}
            yield line, values, ", ".join(filter(None, row[len(header) :]))
    except (OSError, UnicodeError, StopIteration, csv.Error, json.JSONDecodeError) as error:
        reason = "it is empty" if isinstance(error, StopIteration) else error
        raise ValueError(f"cannot read the table {file}: {reason}. Save it as CSV in UTF-8.") from error


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not blank, each with the line where it begins."""
    lines = io.StringIO(text, newline=None)  # whichever mark is at their ends
    reader, line = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), 1
    for row in reader:
        if any(row):
            yield line, [value.strip() for value in row]
        line = reader.line_num + 1
