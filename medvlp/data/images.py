"""Read one image file right, whatever its bit depth, colour model or orientation."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow knows, but does not decode by itself (videos, grids of numbers, drawings).
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
DEPTHS = (8, 10, 12, 14, 16)  # bits a grey value that detectors and files use
PHOTOMETRIC, MIN_IS_WHITE = 262, 0  # TIFF tag and its value for "small numbers are bright"

# What Pillow raises on damaged files, by format and by where the damage sits.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError)
_DECODER_ERRORS += (struct.error, zlib.error, Image.DecompressionBombError)


class ImageError(ValueError):
    """A file that cannot be read as an image; the message names it and says what to do."""


def image_suffixes() -> set[str]:
    """What a picture's name may end in: whatever Pillow opens, with the plugins that are registered now."""
    formats = Image.registered_extensions()  # .png: PNG, ...
    pictures = {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in NO_PICTURES}
    return pictures | {".mpo"}  # several JPEG pictures in one file: the JPEG reader opens it


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    - Orientation: the EXIF tag is applied.
    - Transparency (alpha or a transparent palette entry) is composited on black, the padding of
      radiographs and fundus photographs. Hidden colours never show through.
    - 16-bit grey: black is 0, white is the largest value of the smallest usual depth (8, 10, 12, 14 or
      16 bits) that holds the brightest pixel. So a 12-bit image in a 16-bit file is not black, and a
      16-bit copy of an 8-bit image reads like the original.
    - Negative values, integers beyond 16 bits and floats: from the image's minimum to its maximum; floats
      within 0..1 keep that range. NaN is black.
    - Several frames or pages: the first.

    Returns:
        PIL image in mode RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, broken or no image.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image file {path}.") from error
    except _DECODER_ERRORS as error:
        raise ImageError(
            f"cannot read image {path}: {_reason(path, error)}. Replace or remove the file, "
            "or leave such files out with load_dataset(..., on_error='skip')."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB, by the rules of `read_image` (its EXIF orientation is not applied)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _to_8_bit(np.asarray(image))  # (H, W)
        tags = getattr(image, "tag_v2", {})
        if image.mode.startswith("I;16") and tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
            grey = 255 - grey  # Pillow does not invert these
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colours).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of any number type as uint8 (H, W)."""
    whole = np.issubdtype(values.dtype, np.integer)
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("it holds no finite value")
    low, high = finite.min(), finite.max()
    if whole and low >= 0 and high < 2 ** DEPTHS[-1]:
        low, high = 0, next(2**bits - 1 for bits in DEPTHS if high < 2**bits)
    elif not whole and low >= 0 and high <= 1:
        low, high = 0, 1
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.round((values - low) / ((high - low) or 1) * 255).astype(np.uint8)


def _reason(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "it is a folder"
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows (convert DICOM and other formats to PNG first)"
    return f"the file is broken ({str(error).rstrip('.') or type(error).__name__})"
