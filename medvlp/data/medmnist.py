"""MedMNIST v2: small images in one .npz file a size, read without the medmnist package."""

import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from medvlp.data.card_parts import SPLITS
from medvlp.data.cards import DataCard
from medvlp.data.errors import check_choice
from medvlp.data.files import check_writable
from medvlp.data.image_sets import ImageSet, Pixels
from medvlp.data.tables import label_from

SIZES = (28, 64, 128, 224)  # pixels a side that MedMNIST comes in


def read_medmnist(
    card: DataCard, root: str | Path | None, image_size: int | None, download: bool
) -> tuple[dict[str, ImageSet], dict]:
    """MedMNIST's own train, val and test from `<flag>.npz` (28 pixels) or `<flag>_<size>.npz`.

    `image_size` None takes the largest size that is there. `download` fetches a missing file with the
    medmnist package (28 pixels where no size is given).
    """
    flag = card.source.flag
    if image_size is not None and image_size not in SIZES:
        raise ValueError(
            f"card {card.name!r}: MedMNIST has no size {image_size}. Choices: {', '.join(map(str, SIZES))}."
        )
    default = [os.environ.get("MEDVLP_DATA"), Path.home() / ".medmnist"]  # where medmnist keeps them
    folders = [root] if root is not None else default
    bases = [Path(os.path.expanduser(folder)) for folder in folders if folder]
    paths = {size: [base / _file_name(flag, size) for base in bases] for size in SIZES}
    there = {size: path for size in SIZES for path in reversed(paths[size]) if os.path.isfile(path)}
    size = image_size or max(there, default=SIZES[0])
    if size not in there:
        if not download:
            sizes = ", ".join(str(size) for size in there) or "none"
            looked = " or ".join(str(base) for base in bases)
            raise FileNotFoundError(
                f"card {card.name!r}: no {_file_name(flag, size)} in {looked} (sizes there: {sizes}). "
                "Give root=... or MEDVLP_DATA the folder that holds it, choose a size that is there, or pass "
                f"download=True. How to get it: {card.source.how_to_get or 'the card does not say'}"
            )
        there[size] = _download(flag, size, bases[0])
    return _read(card, there[size]), {"image_size": size, "file": there[size].name}


def _file_name(flag: str, size: int) -> str:
    return f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"


def _download(flag: str, size: int, base: Path) -> Path:
    """Fetch one file with the medmnist package, checked by it; it appears in `base` only when whole."""
    import medmnist  # here, because it makes a folder in the home directory when imported

    check_choice("MedMNIST flag", flag, medmnist.INFO)
    dataset = getattr(medmnist, medmnist.INFO[flag]["python_class"])
    check_writable(base, "the folder of MedMNIST")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=base) as part:
        try:
            dataset(split="train", download=True, size=size, root=part)
        except RuntimeError as error:
            raise ConnectionError(
                f"MedMNIST's {_file_name(flag, size)} could not be downloaded. Check the network, or "
                f"download it by hand from {medmnist.HOMEPAGE} and put it in {base}."
            ) from error
        return Path(part, _file_name(flag, size)).replace(base / _file_name(flag, size))


def _read(card: DataCard, file: Path) -> dict[str, ImageSet]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {
                split: _image_set(card, split, arrays[f"{split}_images"], arrays[f"{split}_labels"])
                for split in SPLITS
            }
    except (OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is no whole MedMNIST file ({error}). Delete it and download it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _image_set(card: DataCard, split: str, images: np.ndarray, labels: np.ndarray) -> ImageSet:
    """Images (N, H, W) or (N, H, W, 3) uint8 and labels (N, 1), checked against the card."""
    pixels_fit = images.dtype == np.uint8 and (images.ndim == 3 or images.shape[3:] == (3,))
    if not pixels_fit or len(images) != len(labels):
        raise ValueError(
            f"{split} has images of shape {images.shape}, {images.dtype}, with {len(labels)} labels; "
            "expected (N, H, W) or (N, H, W, 3), uint8, and N labels."
        )
    if labels.size != len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{split} labels have shape {labels.shape}; only sets with one label an image fit.")
    codes = labels.reshape(-1)  # (N,)
    label_of = {}
    for code in np.unique(codes).tolist():
        try:
            label_of[code] = label_from(card, str(code))
        except ValueError as error:
            raise ValueError(f"{split} image {int(np.argmax(codes == code))}: {error}") from error
    card_labels = torch.tensor([label_of[code] for code in codes.tolist()], dtype=torch.int64)
    ids = [f"{split}/{i}" for i in range(len(codes))]
    return ImageSet(card, split, ids, card_labels, ids, Pixels(images, np.arange(len(codes))))
