"""Tables and names as people's programs write them: each is read as what the person means."""

import time
import unicodedata
from itertools import zip_longest

import pytest
from PIL import Image

from medvlp import SymptomSet, ZeroShot, review_table
from medvlp.data.cards import DataCard
from medvlp.data.datasets import load_dataset
from tests.data.squares import (
    COLUMNS,
    FOLDER,
    LEVELS,
    PATIENTS,
    TABLE,
    card_of,
    draw,
    draw_classes,
    refused,
    rows_of,
    sizes,
    write_classes,
    write_table,
)

COMPOSED, PARTED = "naïve Läsion", unicodedata.normalize("NFD", "naïve Läsion")  # ï as one letter, as two


def ids_and_labels(data):
    """Of all splits."""
    return {n: dict(zip(s.ids, s.labels.tolist(), strict=True)) for n, s in data.splits.items()}


def wanted(folder):
    """Write the twelve images; the rows of their table, and what is to be read from it."""
    rows = rows_of(folder)
    splits = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}
    return rows, {name: {f"images/{i}.png": i % 3 for i in numbers} for name, numbers in splits.items()}


def write(folder, rows, before="", header="path,label,split,group", end="\n", encoding="utf-8", after=""):
    """The table as text; columns are parted as the header's are."""
    header = header.replace("group", "patient")
    mark = next(mark for mark in ",;\t|" if mark in header)
    lines = [before + header, *(mark.join(row) + after for row in rows)]
    (folder / "labels.csv").write_text(end.join(lines) + end, encoding=encoding, newline="")


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", ", ", "; "])
@pytest.mark.parametrize("how", [{}, {"end": "\r\n"}, {"encoding": "utf-8-sig"}, {"before": "\n\n"}])
def test_a_table_with_any_mark_between_its_columns(tmp_path, mark, how):
    rows, right = wanted(tmp_path)
    for row in rows:
        row[3] = f"of {row[3].replace('s', 'a,b;c')}" if mark.strip() not in ",;" else row[3]
    write(tmp_path, rows, header=mark.join(COLUMNS), **how)
    assert ids_and_labels(load_dataset(TABLE, root=tmp_path)) == right


def test_quoted_values_may_hold_the_mark_and_lines_are_the_files(tmp_path):
    rows, right = wanted(tmp_path)
    rows[0][3], rows[1][3] = '"one; or\nthe other"', '"a ""b"""'
    write(tmp_path, rows, header=";".join(COLUMNS))
    data = load_dataset(TABLE, root=tmp_path)
    assert ids_and_labels(data) == right and data.train.groups[:2] == ["one; or\nthe other", 'a "b"']
    rows[2][1] = "bleak"
    write(tmp_path, rows, header=";".join(COLUMNS), before="\n")
    refused(r"line 6 of .*unknown class 'bleak'", TABLE, tmp_path)  # lines 4 and 5 are one row


@pytest.mark.parametrize("header_too", [True, False])
@pytest.mark.parametrize("after", [",", ",,", ", ,"])
def test_commas_at_the_end_of_lines_shift_nothing(tmp_path, after, header_too):
    rows, right = wanted(tmp_path)
    write(tmp_path, rows, header=",".join(COLUMNS) + after * header_too, after=after)
    assert ids_and_labels(load_dataset(TABLE, root=tmp_path)) == right


def test_a_row_that_is_too_long_or_too_short_is_named(tmp_path):
    rows, _ = wanted(tmp_path)
    rows[3] = [*rows[3], "what is this"]
    write(tmp_path, rows)
    refused(r"line 5 of .*more values than the header, such as 'what is this'", TABLE, tmp_path)
    rows[3] = rows[3][:1]
    write(tmp_path, rows)
    refused(r"line 5 of .*unknown class ''", TABLE, tmp_path)
    assert sum(sizes(load_dataset(TABLE, root=tmp_path, on_error="skip")).values()) == 11
    (tmp_path / "labels.csv").write_text('path,label,split,patient\nimages/0.png,"dark,train,s0\n')
    refused(r"cannot read the table .*labels\.csv", TABLE, tmp_path)  # no second quotation mark
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xe9.png,dark\n")
    refused(r"cannot read the table .*labels\.csv.*UTF-8", TABLE, tmp_path)


@pytest.mark.parametrize("form", ["{}.0", "{}.", "{}.000", " {} ", '"{},0"', "0{}"])
@pytest.mark.parametrize(("aliases", "codes"), [("DGB", "012"), ("123", "123"), ("210", "210")])
def test_a_label_that_a_program_wrote_as_a_number_with_a_fraction(tmp_path, form, aliases, codes):
    rows, right = wanted(tmp_path)
    for i, row in enumerate(rows):
        row[1] = form.format(codes[i % 3])
    write(tmp_path, rows)
    card = card_of(aliases, kind="csv", columns=COLUMNS)
    assert ids_and_labels(load_dataset(card, root=tmp_path)) == right
    rows[2][1] = "1.5"
    write(tmp_path, rows)
    refused(r"line 4 of .*unknown class '1\.5'", card, tmp_path)
    rows[2][1] = "7.0"
    write(tmp_path, rows)
    refused(r"line 4 of .*label 7\.0 is out of range", card, tmp_path)


def test_a_class_may_be_called_like_a_number_with_a_fraction(tmp_path):
    draw(tmp_path / "a.png", 20)
    draw(tmp_path / "b.png", 20)
    (tmp_path / "labels.csv").write_text("path,label\na.png,1.0\nb.png,01\n")
    card = DataCard(name="n", title="N", modality="m", classes=["01", "1.0"], source={"kind": "csv"})
    with pytest.raises(ValueError, match="cannot be split"):  # read, with a class each
        load_dataset(card, root=tmp_path)


@pytest.mark.parametrize("form", ["images\\{}.png", ".\\images\\{}.png", "./images/{}.png", "images//{}.png"])
def test_paths_as_another_system_writes_them(tmp_path, form):
    rows, right = wanted(tmp_path)
    for i, row in enumerate(rows):
        row[0] = form.format(i)
    write(tmp_path, rows)
    data = load_dataset(TABLE, root=tmp_path)
    assert ids_and_labels(data) == right
    assert data.test.image(0).size == (10, 12)


def test_one_image_written_in_two_ways_is_one_image(tmp_path):
    rows, _ = wanted(tmp_path)
    rows[5][0] = "images\\1.png"
    write(tmp_path, rows)
    refused(r"line 7 of .*already in line 3", TABLE, tmp_path)


def test_a_file_whose_name_has_a_backslash_is_that_file(tmp_path):
    rows, _ = wanted(tmp_path)
    try:
        (tmp_path / "images" / "5.png").rename(tmp_path / "images" / "a\\5.png")
    except OSError:
        pytest.skip("a backslash is no letter here")
    rows[5][0] = "images/a\\5.png"
    write(tmp_path, rows)
    assert "images/a\\5.png" in load_dataset(TABLE, root=tmp_path).train.ids


# ---------------------------------------------------------------- a table that was saved


@pytest.mark.parametrize("aliases", ["", "DGB", "210", "123", "201"])
@pytest.mark.parametrize(
    "names", [list(LEVELS), ["2", "0", "1"], ["1.0", "0.0", "2.0"], ["a,b", "c;d", 'e"f']]
)
def test_a_split_table_read_again_has_the_same_images_labels_splits_and_groups(tmp_path, names, aliases):
    if set(aliases) & set(names):
        pytest.skip("a card of which one alias is another's name is none")
    classes = [
        {"name": name, "aliases": [*alias]} for name, alias in zip_longest(names, aliases, fillvalue="")
    ]
    for name in names:
        for i in range(8):
            draw(tmp_path / name / f"p{i // 2}_{i}.png", 100, i)
    facts = {"name": "again", "title": "A", "modality": "m", "classes": classes}
    source = {"kind": "folder", "group_pattern": PATIENTS, "val_fraction": 0.3, "test_fraction": 0.3}
    data = load_dataset(DataCard(**facts, source=source), root=tmp_path)
    table = data.split_table()
    for sep in ",;\t":
        table.to_csv(tmp_path / "labels.csv", index=sep == ";", sep=sep)
        columns = {"path": "id", "label": "label", "split": "split", "group": "group"}
        again = load_dataset(DataCard(**facts, source={"kind": "csv", "columns": columns}), root=tmp_path)
        assert ids_and_labels(again) == ids_and_labels(data)
        assert [s.groups for s in again.splits.values()] == [s.groups for s in data.splits.values()]
        assert again.train.fingerprint == data.train.fingerprint
        assert again.split_table().equals(table)


# ---------------------------------------------------------------- letters in two spellings, the home folder


@pytest.mark.parametrize(("in_card", "on_disk"), [(COMPOSED, PARTED), (PARTED, COMPOSED)])
def test_one_name_in_two_spellings_is_one_name(tmp_path, in_card, on_disk):
    """The names of folders, files, classes, columns and groups, wherever they are read."""
    twin = {COMPOSED: PARTED, PARTED: COMPOSED}
    folder = tmp_path / f"data {on_disk}"
    for name in (on_disk, "dark"):
        for i in range(12):
            draw(folder / f"train {on_disk}" / name / f"{on_disk}{i}.png", 100, i)
    source = {"folder": f"data {in_card}"}
    facts = {"name": "spelled", "title": "S", "modality": "m", "classes": [in_card, "dark"]}
    splits = {"kind": "folder", "splits": {"train": f"train {in_card}"}}
    card = DataCard(**facts, source=source | splits)
    data = load_dataset(card, root=tmp_path)
    assert data.summary()["total"].sum() == 24 and card.label_of(on_disk) == card.label_of(in_card) == 0
    assert data.of_classes(["dark", twin[in_card]]).card.classnames == ["dark", COMPOSED]
    knows = card.with_knowledge("signs", {twin[in_card]: ["a rim"], "dark": ["a shade"]})
    assert knows.symptoms("signs")[COMPOSED] == ["a rim"]
    assert all(unicodedata.is_normalized("NFC", name) for name in data.train.ids)

    table = data.split_table()
    table["id"] = [unicodedata.normalize("NFD" if in_card == PARTED else "NFC", name) for name in table["id"]]
    table["label"] = table["label"].replace({COMPOSED: in_card})
    table["group"] = [twin[(COMPOSED, PARTED)[i % 2]] + str(i // 2) for i in range(24)]
    table = table.rename(columns={"label": f"Klasse {on_disk}"}).drop(columns="split")
    table.to_csv(folder / f"{on_disk}.csv", index=False)
    columns = {"path": "id", "label": f"Klasse {in_card}", "group": "group"}
    listed = DataCard(**facts, source=source | {"kind": "csv", "file": f"{in_card}.csv", "columns": columns})
    again = load_dataset(listed, root=tmp_path)
    names = [images.ids for images in again.splits.values()]
    assert sorted(sum(names, [])) == sorted(sum((s.ids for s in data.splits.values()), []))
    assert len({group for images in again.splits.values() for group in images.groups}) == 12
    assert isinstance(again.test.image(0), Image.Image)


def test_two_classes_that_differ_in_spelling_alone_are_refused():
    with pytest.raises(ValueError, match="two classes are called"):
        DataCard(name="n", title="N", modality="m", classes=[COMPOSED, PARTED], source={"kind": "csv"})


def test_the_home_folder_is_known_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    draw_classes(tmp_path / "data" / "squares")
    rows, _ = wanted(tmp_path / "data")
    write(tmp_path / "data", rows)
    for card in (FOLDER, card_of(kind="folder", folder="squares"), TABLE):
        root = "~/data/squares" if card is FOLDER else "~/data"
        monkeypatch.setenv("MEDVLP_DATA", root)
        assert ids_and_labels(load_dataset(card)) == ids_and_labels(load_dataset(card, root=root))
    monkeypatch.delenv("MEDVLP_DATA")
    card = card_of(kind="folder", folder="~/data/squares")
    assert sum(sizes(load_dataset(card, root=tmp_path)).values()) == 60


@pytest.mark.parametrize("twin", [COMPOSED, PARTED])
def test_phrases_may_name_a_class_in_either_spelling(clip, twin):
    card = DataCard(name="n", title="N", modality="m", classes=[twin, "dark"], source={"kind": "csv"})
    phrases = {PARTED: ["a rim"], "dark": ["a shade"]}
    assert SymptomSet.from_phrases(card, phrases)[PARTED] == ["a rim"]
    assert list(review_table(phrases, card)["classname"]) == [COMPOSED, "dark"]
    assert ZeroShot(clip, card, knowledge="symptoms", symptoms=phrases).symptoms[COMPOSED] == ["a rim"]


# ---------------------------------------------------------------- patterns

NEVER_ENDS = [r"^((?:a|aa)+)$", r"^((?:a|a)+)!", r"^((?:a+)+)x*$", "(a+)+x"]


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("pattern", NEVER_ENDS)
def test_a_pattern_that_never_ends_is_named_with_the_file(tmp_path, monkeypatch, kind, pattern):
    """Python's re needs years for each of them; some of them regex can do."""
    monkeypatch.setattr("medvlp.data.folders.PATTERN_SECONDS", 0.3)
    paths = [f"{name}/{'a' * 90}{i}!x.png" for name in LEVELS for i in "123"]
    for path in paths:
        draw(tmp_path / path, LEVELS[path.split("/")[0]])
    write_classes(tmp_path)
    start = time.monotonic()
    try:
        load_dataset(card_of(kind=kind, group_pattern=pattern), root=tmp_path)
    except ValueError as error:
        said = "took more than 0.3 s on the name '" if pattern in NEVER_ENDS[:2] else "finds nothing"
        assert f"group_pattern {pattern!r} {said}" in str(error)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_pattern_is_searched_in_the_name_then_in_the_path(tmp_path, kind):
    paths = [f"{name}/p{i // 2}/{'q' if i < 6 else 'r'}{i}_x.png" for name in LEVELS for i in range(12)]
    for i, path in enumerate(paths):
        draw(tmp_path / path, LEVELS[path.split("/")[0]], i)
    write_classes(tmp_path)

    def groups(pattern):
        data = load_dataset(card_of(kind=kind, group_pattern=pattern), root=tmp_path)
        return data, sorted({group for images in data.splits.values() for group in images.groups})

    assert groups(r"(p\d+)/")[1] == sorted(f"p{i}" for i in range(6))
    assert groups(r"^(.\d+)_")[1] == sorted(f"{'q' if i < 6 else 'r'}{i}" for i in range(12))
    data, some = groups(r"^(q\d+)_")
    assert data.record["without_group"] == 18 and len(some) == 6 + 18
    assert "in no group, each image its own: 18 image(s)" in repr(data)
    data, _ = groups(r"(p\d+)/")
    assert data.record["without_group"] == 0 and "in no group" not in repr(data)
    card = card_of(kind=kind, group_pattern=r"^(patient\d+)")
    refused("group_pattern .*patient.* finds nothing in any name or path, such as '.*_x.png'", card, tmp_path)


def test_patients_with_a_folder_each_are_on_one_side(tmp_path):
    for name, (kind, level) in {"benign": ("b", 30), "malignant": ("m", 200)}.items():
        for i in range(36):
            draw(tmp_path / f"{name}/patient{kind}{i // 3:02d}/img{i % 3}.jpg", level, i)
    source = {"kind": "folder", "group_pattern": "(patient[a-z][0-9]+)"}
    card = DataCard(name="n", title="N", modality="m", classes=["benign", "malignant"], source=source)
    data = load_dataset(card, root=tmp_path)
    patients = [set(images.groups) for images in data.splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 24
    assert data.record["groups_in_two_splits"] == {} and data.record["without_group"] == 0


def test_images_to_which_a_table_gives_no_group_are_counted(squares):
    names = [f"{name}/p{i // 2:03d}_{i}.png" for name in LEVELS for i in range(20)]
    for with_group in (0, 56, 60):
        groups = [f"g{i // 2}" if i < with_group else "" for i in range(60)]
        rows = [(name, name.split("/")[0], group) for name, group in zip(names, groups, strict=True)]
        write_table(squares, rows, ("path", "label", "group"))
        data = load_dataset(card_of(kind="csv", columns={"group": "group"}), root=squares)
        assert data.record["without_group"] == (4 if with_group == 56 else 0)
        assert ("in no group, each image its own: 4 image(s)" in repr(data)) == (with_group == 56)
