"""DICOM files are read as a viewer shows them, wherever images are read."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage, generate_uid

from medvlp.data.datasets import load_dataset
from medvlp.data.images import ImageError, read_image
from tests.data.test_datasets import FOLDER, LEVELS

GREY = np.linspace(0, 4095, 12 * 16).astype(np.uint16).reshape(12, 16)


def write(path: Path, values: np.ndarray | None, kind: str = "MONOCHROME2", bits: int = 12, **tags) -> Path:
    """A DICOM file with these values and tags."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    if values is not None:
        data.set_pixel_data(values, kind, bits)
    for name, value in tags.items():
        setattr(data.file_meta if name == "TransferSyntaxUID" else data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)[..., 0]


def test_values_are_rescaled_and_windowed(tmp_path):
    scale = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [300, 0], "WindowWidth": [1200, 1]}
    x = 2.0 * GREY - 1000  # PS3.3 C.11.2.1.2.1
    expected = np.clip((x - (300 - 0.5)) / (1200 - 1) + 0.5, 0, 1) * 255
    found = grey(write(tmp_path / "slice.dcm", GREY, **scale))
    assert np.abs(found - expected).max() <= 0.51 and {0, 255} < set(found.flatten().tolist())
    inverted = grey(write(tmp_path / "film", GREY, "MONOCHROME1", **scale))  # a name without an ending
    assert np.array_equal(inverted, 255 - found)


def test_without_a_window_the_rules_are_those_of_other_images(tmp_path):
    assert np.array_equal(grey(write(tmp_path / "a.dcm", GREY)), np.asarray(read_image(GREY))[..., 0])
    signed = GREY.astype(np.int16) - 1000
    found = grey(write(tmp_path / "b.dcm", signed, bits=16, RescaleSlope=1, RescaleIntercept=-24))
    assert np.array_equal(found, np.asarray(read_image(signed - 24))[..., 0])
    assert np.array_equal(
        grey(write(tmp_path / "c.dcm", GREY, "MONOCHROME1")), 255 - grey(tmp_path / "a.dcm")
    )


def test_colours_stay(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    found = read_image(write(tmp_path / "a.dcm", colours, "RGB", 8))
    assert np.array_equal(np.asarray(found), colours)


def test_a_folder_may_hold_them_beside_other_images(tmp_path):
    for shade, name in enumerate(LEVELS):
        for i in range(6):
            write(tmp_path / name / f"{i}.DCM", np.full((8, 8), 600 * shade + 9 * i + 5, np.uint16))
            Image.new("L", (8, 8), 60 * shade + i).save(tmp_path / name / f"{i}.png")
    data = load_dataset(FOLDER, root=tmp_path)
    images = [part.image(i) for part in (data.train, data.val, data.test) for i in range(len(part))]
    assert len(images) == 36 and {image.mode for image in images} == {"RGB"}


WRONG = {
    "frames": ({"values": np.stack([GREY] * 3)}, "it is a DICOM file of 3 frames; save the one"),
    "nothing": ({"values": None}, "it is a DICOM file without a picture"),
    "palette": (
        {"values": GREY, "PhotometricInterpretation": "PALETTE COLOR"},
        "DICOM file of PALETTE COLOR",
    ),
    "table": (
        {"values": GREY, "VOILUTSequence": [Dataset()]},
        "with a table .VOI LUT. in the place of a window",
    ),
    "compressed": (
        {"values": GREY, "TransferSyntaxUID": JPEGLSLossless, "PixelData": encapsulate([b"\xff\xd8 .."])},
        "compressed .JPEG-LS Lossless.*: pip install 'pylibjpeg.all.'",
    ),
    "short": ({"values": GREY, "Rows": 400}, "the file is broken"),
    "huge": ({"values": GREY, "Rows": 60_000, "Columns": 60_000}, "3,600,000,000 pixels, and Pillow's limit"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_read_says_why(what, tmp_path):
    given, message = WRONG[what]
    path = write(tmp_path / "a.dcm", **given)
    with pytest.raises(ImageError, match=f"cannot read image .*a.dcm: .*{message}.*on_error='skip'"):
        read_image(path)


def test_without_pydicom_it_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", GREY)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"a DICOM file, which pydicom reads: pip install 'medvlp\[dicom\]'"):
        read_image(path)
    assert read_image(np.zeros((4, 4), np.uint8)).size == (4, 4)
