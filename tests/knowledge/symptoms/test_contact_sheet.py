"""Contact sheets: the right images, training only, and nothing of their files."""

import io

import numpy as np
import pytest
from PIL import Image

from medvlp.data.cards import DataCard
from medvlp.data.datasets import load_dataset
from medvlp.knowledge.symptoms.questions import contact_sheet
from tests.methods.small import COLOURS, make_card, make_set

CARD = make_card()


def tiles(jpeg: bytes) -> np.ndarray:
    """(16, 112, 112, 3) uint8, row by row."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert pixels.shape == (448, 448, 3)
    return pixels.reshape(4, 112, 4, 112, 3).swapaxes(1, 2).reshape(16, 112, 112, 3)


def test_a_sheet_shows_sixteen_images_of_its_class_alone():
    images = make_set(CARD, [0, 1, 2] * 20)
    sheet = contact_sheet(images, "nevus")
    means = tiles(sheet.jpeg).mean(axis=(1, 2))  # (16, 3)
    assert sheet.shown == 16 and len(set(sheet.ids)) == 16
    assert np.abs(means - COLOURS[1]).max() < 30
    assert {images.labels[images.ids.index(one)].item() for one in sheet.ids} == {1}


def test_places_stay_black_where_a_class_has_fewer():
    sheet = contact_sheet(make_set(CARD, [0] * 3 + [1] * 20), "melanoma")
    means = tiles(sheet.jpeg).mean(axis=(1, 2, 3))
    assert sheet.shown == 3
    assert (means[:3] > 50).all() and (means[3:] < 5).all()


def test_the_seed_chooses_the_images():
    images = make_set(CARD, [0] * 60)
    one, same, other = (contact_sheet(images, "melanoma", seed) for seed in (1, 1, 2))
    assert one.jpeg == same.jpeg and one.ids == same.ids
    assert set(one.ids) != set(other.ids)


def test_every_patient_comes_before_anyones_second_image():
    images = make_set(CARD, [0] * 40)
    images.groups = [f"patient {i // 3}" for i in range(40)]  # 14 patients
    shown = [images.groups[images.ids.index(one)] for one in contact_sheet(images, "melanoma").ids]
    assert len(set(shown[:14])) == 14 and len(shown) == 16


@pytest.mark.parametrize(
    ("split", "classname", "said"),
    [
        ("val", "melanoma", "split 'val'.*data.train"),
        ("test", "melanoma", "split 'test'.*data.train"),
        ("train", "keratosis", "'keratosis': there is no training image"),
    ],
)
def test_only_training_images_are_shown(split, classname, said):
    with pytest.raises(ValueError, match=said):
        contact_sheet(make_set(CARD, [0, 1], split), classname)


def test_nothing_of_the_files_is_in_the_jpeg(tmp_path):
    """EXIF, comments and file names of the sources stay behind; orientation and aspect are kept."""
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0112] = "JANE DOE 1970", "Dr Secret", 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            image = Image.new("RGB", (60, 120), (200, 10, 10))
            image.save(tmp_path / name / f"jane-doe-{i}.jpg", exif=exif, comment=b"JANE DOE")
    source = {"kind": "folder", "splits": {"train": "."}, "val_fraction": 0.25, "test_fraction": 0.25}
    facts = {"name": "files", "title": "Files", "modality": "a photo", "classes": ["a", "b"]}
    card = DataCard.model_validate(facts | {"source": source})
    images = load_dataset(card, root=tmp_path).train
    sheet = contact_sheet(images, "a")
    raw = sheet.jpeg.lower()
    assert b"jane" not in raw and b"secret" not in raw and b"exif" not in raw
    opened = Image.open(io.BytesIO(sheet.jpeg))
    assert not opened.getexif() and "comment" not in opened.info
    first = tiles(sheet.jpeg)[0]
    assert first[2, 56].sum() < 30 and first[56, 56, 0] > 150  # upright it is wide: black above, red inside


def test_a_sheet_stands_as_its_hash_in_a_record_and_as_a_picture_in_a_notebook():
    sheet = contact_sheet(make_set(CARD, [0] * 5), "melanoma")
    assert sheet.facts["bytes"] == len(sheet.jpeg) and len(sheet.facts["sha256"]) == 64
    assert Image.open(io.BytesIO(sheet._repr_jpeg_())).size == (448, 448)
    assert len(repr(sheet)) < 100
