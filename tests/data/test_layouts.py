"""Cards of image files read a folder that is laid out as the data is published, with small made-up images."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset


@dataclass
class Layout:
    """A folder: its images with their classes (None: none that the card means), and its tables."""

    images: dict[str, str | None]
    tables: dict[str, str] = field(default_factory=dict)
    splits: dict[str, int] | None = None  # images of each, where the data says; else they are made
    groups: dict[str, str] = field(default_factory=dict)  # of some images
    split_of: dict[str, str] = field(default_factory=dict)


def folders(pattern: str, n: int = 8, **classes: str) -> dict[str, str]:
    """N images a class, {} and {i} in the pattern being the class's folder and the image's number."""
    return {pattern.format(word, i=i): name for word, name in classes.items() for i in range(1, n + 1)}


def table(header: str, row: str, n: int = 8, **classes: str) -> str:
    """A table with n rows a class, {} and {i} being the class's word and the image's number."""
    return "\n".join([header, *folders(row, n, **classes)])


def isic(split: str, n: int) -> tuple[dict[str, str], dict[str, str]]:
    """Images of one of ISIC's splits, and their table with a column for each class."""
    name, lines = f"ISIC2018_Task3_{split}", ["image," + ",".join(ISIC)]
    for code in ISIC:
        marks = ",".join(str(float(code == other)) for other in ISIC)
        lines += [f"{split}_{code}{i},{marks}" for i in range(1, n + 1)]
    table = f"isic/{name}_GroundTruth/{name}_GroundTruth.csv"
    return folders(f"isic/{name}_Input/{split}_{{}}{{i}}.jpg", n, **ISIC), {table: "\n".join(lines)}


def derm7pt() -> Layout:
    """Every diagnosis that is meant, and one that is not, once in each split."""
    meant = {word: info.name for info in load_card("derm7pt").classes for word in info.aliases[1:]}
    meant |= {"melanoma": "melanoma", "basal cell carcinoma": None}
    n, columns = len(meant), [attribute.column for attribute in load_card("derm7pt").attributes]
    rows = [(i, word, f"NEL/Nel{i:03}.JPG") for i, word in enumerate(list(meant) * 3)]
    signs = ",typical,present,absent,absent,regular,irregular,blue areas"
    tables = {f"{name}_indexes": ["indexes", *range(n * k, n * k + n)] for k, name in enumerate(INDEXES)}
    tables["meta"] = [",".join(["case_num,diagnosis,derm,clinic", *columns])]
    tables["meta"] += [f"{i + 7},{word},{path},{path}{signs}" for i, word, path in rows]
    return Layout(
        {f"derm7pt/images/{path}": meant[word] for _, word, path in rows},
        {f"derm7pt/meta/{name}.csv": "\n".join(map(str, lines)) for name, lines in tables.items()},
        dict.fromkeys(("train", "val", "test"), n - 1),
        {"images/NEL/Nel000.JPG": "7"},
        {f"images/NEL/Nel{n * k:03}.JPG": split for k, split in enumerate(("train", "val", "test"))},
    )


def chaoyang() -> Layout:
    """Two tables in JSON."""
    names = {s: [(f"{s}/{k}-{i}.JPG", k) for k in range(4) for i in range(5)] for s in ("train", "test")}
    tables = {s: [{"name": name, "label": k} for name, k in rows] for s, rows in names.items()}
    classes = ["normal colon tissue", "serrated lesion", "adenocarcinoma", "adenoma"]
    return Layout(
        {f"chaoyang/{name}": classes[k] for rows in names.values() for name, k in rows},
        {f"chaoyang/{s}.json": json.dumps(rows) for s, rows in tables.items()},
        {"train": 16, "val": 4, "test": 20},
    )


INDEXES = ("train", "valid", "test")
KVASIR = """dyed-lifted-polyps dyed-resection-margins esophagitis normal-cecum normal-pylorus normal-z-line
polyps ulcerative-colitis"""
KVASIR = {word: word.replace("-", " ").replace("z ", "z-") for word in KVASIR.split()}
BUSI = {word: f"{word} breast tumor" for word in ("benign", "malignant")} | {"normal": "normal breast tissue"}
GRADES = ("no", "mild", "moderate", "severe", "proliferative")
GRADES = {str(i): f"{grade} diabetic retinopathy" for i, grade in enumerate(GRADES)}
PLANES = {f"Fetal {part}": f"fetal {part}" for part in ("brain", "femur", "abdomen", "thorax")}
PLANES |= {"Maternal cervix": "maternal cervix", "Other": "other planes"}
ISIC = {"MEL": "melanoma", "NV": "melanocytic nevus", "BCC": "basal cell carcinoma"}
ISIC |= {"AKIEC": "actinic keratosis", "BKL": "benign keratosis", "DF": "dermatofibroma"}
ISIC |= {"VASC": "vascular lesion"}
ODIR = {"N": "normal fundus", "D": "diabetes", "G": "glaucoma", "C": "cataract"}
ODIR |= {"A": "age-related macular degeneration", "H": "hypertension", "M": "pathological myopia"}
ODIR |= {"O": "other diseases or abnormalities"}
FETAL = "FETAL_PLANES_ZENODO/FETAL_PLANES_DB_data.csv"
HEADER = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "

LAYOUTS = {
    "adam": Layout(
        folders("adam/Training400/{}/A{i:04}.jpg", AMD="age-related macular degeneration")
        | folders("adam/Training400/{}/N{i:04}.jpg", **{"Non-AMD": "normal fundus"}),
        {"adam/Training400/Fovea_location.xlsx": "no table that is read"},
    ),
    "aptos2019": Layout(
        folders("aptos2019/train_images/{}{i:04}.png", **GRADES)
        | folders("aptos2019/test_images/{}{i:04}.png", test=None),
        {"aptos2019/train.csv": table("id_code,diagnosis", "{0}{i:04},{0}", **GRADES)},
    ),
    "busi": Layout(
        folders("Dataset_BUSI_with_GT/{0}/{0} ({i}).png", **BUSI)
        | dict.fromkeys(folders("Dataset_BUSI_with_GT/{0}/{0} ({i})_mask.png", **BUSI))
        | {"Dataset_BUSI_with_GT/benign/benign (4)_mask_1.png": None},
    ),
    "chaoyang": chaoyang(),
    "cpn-x-ray": Layout(
        folders("cpn-x-ray/{}/{i}.png", COVID="COVID-19", NORMAL="normal lung", PNEUMONIA="pneumonia")
    ),
    "derm7pt": derm7pt(),
    "fetal-us": Layout(
        folders("FETAL_PLANES_ZENODO/Images/{}_{i}.png", 6, **PLANES)
        | folders("FETAL_PLANES_ZENODO/Images/{}_test{i}.png", 3, **PLANES),
        {
            FETAL: table(HEADER, "{0}_{i};{i};{0};Not A Brain;Op. 1;Aloka;1", 6, **PLANES)
            + table("", "{0}_test{i};9{i};{0};Not A Brain;Op. 2;Other;0", 3, **PLANES)
        },
        {"train": 30, "val": 6, "test": 18},
        {"Images/Other_1.png": "1", "Images/Fetal femur_test2.png": "92"},
    ),
    "isic": Layout(
        isic("Training", 4)[0] | isic("Validation", 2)[0] | isic("Test", 3)[0],
        isic("Training", 4)[1] | isic("Validation", 2)[1] | isic("Test", 3)[1],
        {"train": 28, "val": 14, "test": 21},
    ),
    "kvasir": Layout(folders("kvasir/{}/{i}.jpg", **KVASIR)),
    "odir": Layout(
        folders("odir/preprocessed_images/{}{i}_left.jpg", **ODIR),
        {"odir/full_df.csv": table("ID,labels,filename", "{0}{i},['{0}'],{0}{i}_left.jpg", **ODIR)},
        groups={"preprocessed_images/N1_left.jpg": "N1"},
    ),
}


def lay(layout: Layout, root: Path) -> None:
    """Make the folder."""
    for n, path in enumerate(layout.images):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n % 16 * 16, n // 16 * 16, 90)).save(root / path)  # all differ
    for path, text in layout.tables.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_read(name, tmp_path):
    layout, card = LAYOUTS[name], load_card(name)
    lay(layout, tmp_path)
    data = load_dataset(name, root=tmp_path, on_same_image="raise")
    read = {
        (images.store.folder / path).relative_to(tmp_path).as_posix(): card.classnames[label]
        for images in data.splits.values()
        for path, label in zip(images.store.names, images.labels.tolist(), strict=True)
    }
    assert read == {path: of_class for path, of_class in layout.images.items() if of_class}
    assert not data.record["skipped"] and card.images
    if layout.splits:
        assert {split: len(images) for split, images in data.splits.items()} == layout.splits
    groups = {name: group for s in data.splits.values() for name, group in zip(s.ids, s.groups, strict=True)}
    assert layout.groups.items() <= groups.items()
    said = f"images: {len(read)}, where the data has {card.images} as it was published"
    assert said in repr(data) and said in repr(load_dataset(name, root=tmp_path, num_shots=1))
    assert "published" not in repr(load_dataset(name, root=tmp_path, test_only=True))
    split_of = {name: split for split, images in data.splits.items() for name in images.ids}
    assert layout.split_of.items() <= split_of.items()
    if card.attributes:
        assert data.test.attributes.notna().all(axis=None)


ISIC_TEST = "isic/ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv"
ONE = "of the columns 'MEL', .* have a 1; expected one"
VALID = "derm7pt/meta/valid_indexes.csv"


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "said"),
    [
        ("isic", ISIC_TEST, "1.0,0.0", "1.0,1.0", f"line 2 of .*: 2 {ONE}"),
        ("isic", ISIC_TEST, "1.0,0.0", "0.0,0.0", f"line 2 of .*: 0 {ONE}"),
        ("derm7pt", VALID, "\n16", "\n1600", "meta.csv: unknown split 'of row 16'"),
        ("chaoyang", "chaoyang/test.json", '"label": 0}', '"label": 0', "cannot read the table .*test.json"),
        ("fetal-us", FETAL, "Other;0", "Other;2", "unknown split '2'"),
        ("odir", "odir/full_df.csv", "['N']", "\"['N', 'D']\"", "unknown class"),
    ],
)
def test_what_is_wrong_in_such_a_table_is_said(name, table, old, new, said, tmp_path):
    lay(LAYOUTS[name], tmp_path)
    text = (tmp_path / table).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / table).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_dataset(name, root=tmp_path)


def test_skipped_files_are_counted_and_test_images_alone_are_those_of_the_tables(tmp_path):
    lay(LAYOUTS["busi"], tmp_path)
    assert load_dataset("busi", root=tmp_path).record["other_files"] == {"called *_mask*.png": 25}
    lay(LAYOUTS["derm7pt"], tmp_path)
    alone = load_dataset("derm7pt", root=tmp_path, test_only=True)
    assert set(alone.test.ids) == set(load_dataset("derm7pt", root=tmp_path).test.ids)
