"""Cards of image files read a folder that is laid out as the data is published, with small made-up images."""

from dataclasses import dataclass, field

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


def folders(pattern: str, n: int = 8, **classes: str) -> dict[str, str]:
    """N images a class, {} and {i} in the pattern being the class's folder and the image's number."""
    return {pattern.format(word, i=i): name for word, name in classes.items() for i in range(1, n + 1)}


KVASIR = """dyed-lifted-polyps dyed-resection-margins esophagitis normal-cecum normal-pylorus normal-z-line
polyps ulcerative-colitis"""
KVASIR = {word: word.replace("-", " ").replace("z ", "z-") for word in KVASIR.split()}

LAYOUTS = {
    "adam": Layout(
        folders("adam/Training400/{}/A{i:04}.jpg", AMD="age-related macular degeneration")
        | folders("adam/Training400/{}/N{i:04}.jpg", **{"Non-AMD": "normal fundus"}),
        {"adam/Training400/Fovea_location.xlsx": "no table that is read"},
    ),
    "cpn-x-ray": Layout(
        folders("cpn-x-ray/{}/{i}.png", COVID="COVID-19", NORMAL="normal lung", PNEUMONIA="pneumonia")
    ),
    "kvasir": Layout(folders("kvasir/{}/{i}.jpg", **KVASIR)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_read(name, tmp_path):
    layout, card = LAYOUTS[name], load_card(name)
    for n, path in enumerate(layout.images):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n % 16 * 16, n // 16 * 16, 90)).save(tmp_path / path)  # all differ
    for path, text in layout.tables.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
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
