"""Read one image right, whatever it comes in and whatever its bit depth, colour model or orientation."""

import os
import re
import struct
import sys
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from medvlp.data.beyond_pillow import ORIENTATION, PIXEL_TAGS, is_dicom, read_dicom, without_metadata
from medvlp.data.errors import ImageError
from medvlp.data.files import open_regular, short

# Formats that Pillow names but does not decode by itself (videos, grids of numbers, drawings).
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
DEPTHS = (8, 10, 12, 14, 16)  # bits a value that detectors and files use
WHITE_16 = 2 ** DEPTHS[-1] - 1
ROWS = 64  # converted at a time, so that a large image needs little memory beside its own

# TIFF tags and values
BITS, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
MIN_IS_WHITE, MIN_IS_BLACK, IN_PLANES, PREMULTIPLIED, SIGNED, LONG = 0, 1, 2, (1,), (2,), 4
PARTS = {273, 279, 324, 325}  # where strips or tiles are, and how long

# How Pillow unpacks 16 bits a colour: the bands, and the order of their two bytes (N: this machine's).
DEEP = re.compile(r"(L|LA|RGB|RGBX|RGBA|RGBa|CMYK);16([LBN])")
# What libtiff has brought into this machine's order already, although Pillow says that it has not.
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}

LEAVE_OUT = " Replace or remove the file, or leave such files out with load_dataset(..., on_error='skip')."
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)

ImageSource = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor


def image_suffixes() -> set[str]:
    """Endings of DICOM files and of those that Pillow, with the plugins registered now, opens as pictures."""
    formats = Image.registered_extensions()  # .png: PNG, ...
    pictures = {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in NO_PICTURES}
    # .mpo is several JPEG pictures in one file: the JPEG reader opens it
    return pictures | {".mpo", ".dcm", ".dicom"}


def read_image(source: ImageSource) -> Image.Image:
    """Read an image as 8-bit RGB, upright: a file, its bytes, a PIL image, an array or a tensor.

    - Orientation: the EXIF tag is applied. Metadata that is broken is passed over: the pixels count.
    - Transparency (alpha or a transparent palette entry) is composited on black, the padding of
      radiographs and fundus photographs. Hidden colours never show through.
    - 16 bits, grey or colour: black is 0, white is the largest value of the smallest usual depth (8, 10, 12,
      14 or 16 bits) that holds the brightest value. So a 12-bit image in a 16-bit file is not black, and a
      16-bit copy of an 8-bit image reads like the original.
    - Negative values, integers beyond 16 bits and floats: from the image's minimum to its maximum; floats
      within 0..1 keep that range. NaN is black.
    - Several frames or pages: the first; of a PIL image the one that it shows.
    - DICOM files (with pydicom, `pip install 'medvlp[dicom]'`): rescaled, windowed where they have a window,
      MONOCHROME1 inverted, else by the same rules; of one frame only.
    - Arrays: (H, W), (H, W, 1), (H, W, 3) or, with alpha, (H, W, 4), of integers, floats or bool, by the same
      rules; colours must be floats within 0..1 or integers within 0..65535. Tensors have channels first:
      (H, W), (1, H, W), (3, H, W) or (4, H, W).

    A PIL image whose pixels are loaded has 8 bits a colour: what its file had beyond them is gone.

    Returns:
        PIL image in mode RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, broken or no image; the array is none.
    """
    try:
        if isinstance(source, np.ndarray | Tensor):
            return _from_array(source)
        if isinstance(source, Image.Image):
            return _from_pil(source)
        with _opened(source) as file:
            return _decode(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no image file {_name(source)}.") from error
    except Exception as error:  # at damaged files Pillow raises whatever its decoders stumble over
        advice = LEAVE_OUT if isinstance(source, str | Path) else ""
        raise ImageError(f"cannot read image {_name(source)}: {_reason(error)}.{advice}") from error


# ---------------------------------------------------------------- what an image comes in


def _opened(source: str | Path | bytes | bytearray | memoryview | BinaryIO) -> BinaryIO:
    """The file, or the bytes, to read from."""
    if isinstance(source, str | os.PathLike):
        file = open_regular(source)
        if os.fstat(file.fileno()).st_size:
            return file
        file.close()
        raise ImageError("the file is empty")
    content = source.read() if hasattr(source, "read") else source
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ImageError("an image is a path, bytes, a PIL image, an array or a tensor")
    if not len(content):
        raise ImageError("it is empty")
    return BytesIO(content)


def _from_pil(image: Image.Image) -> Image.Image:
    """A PIL image; one that is not loaded yet is read from its file, which may hold more than 8 bits."""
    if not getattr(image, "tile", None):
        image.load()
        return _upright(_to_rgb(image), image)
    if image.fp is None or image.fp.closed:
        raise ImageError("its file is closed: use it inside the with statement, or give the file's path")
    position = image.fp.tell()
    try:
        return _decode(image.fp, image.tell())
    finally:
        image.fp.seek(position)


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    shapes = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
    if isinstance(array, Tensor):
        shapes = "(H, W), (1, H, W), (3, H, W) or (4, H, W)"
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array  # (H, W, C)
    kind, channels = array.dtype.kind, array.shape[2] if array.ndim == 3 else 1
    if kind not in "uifb" or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ImageError(f"an image is {shapes}, of integers, floats or bool; of several give a list")
    array = array.astype(np.uint8) * 255 if kind == "b" else array
    if channels == 1:
        return Image.fromarray(_scaled(array.reshape(array.shape[:2]))).convert("RGB")
    limit = 1 if kind == "f" else WHITE_16
    low, high = (find.reduce(array, axis=None) for find in (np.fmin, np.fmax))
    if not (low >= 0 and high <= limit):
        raise ImageError(f"colours of {array.dtype} must be within 0..{limit}, these go from {low} to {high}")
    if kind == "f":
        return _to_rgb(Image.fromarray(_scaled(array)))
    return _to_rgb(_eight_bits(array.astype(np.uint16), "RGBA"[:channels]))


def _name(source: ImageSource) -> str:
    """What an error calls the image."""
    if isinstance(source, np.ndarray | Tensor):
        return f"in an array of shape {tuple(source.shape)}, {source.dtype}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"of {len(source):,} bytes"
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "filename", "") or getattr(source, "name", "")
        return str(name) or f"in a {type(source).__name__}"
    return short(source)


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, _TOO_LARGE):
        pixels, limit = (f"{int(number):,}" for number in re.findall(r"\d+", str(error))[:2])
        return (
            f"it has {pixels} pixels, and Pillow's limit, which guards the memory, is {limit}. Make it "
            "smaller or, if you trust it, set PIL.Image.MAX_IMAGE_PIXELS higher"
        )
    if isinstance(error, MemoryError):
        return "there is not enough memory for it. Make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows (convert other formats or layouts to PNG first)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"the file is broken ({str(error).rstrip('.') or type(error).__name__})"


# ---------------------------------------------------------------- from a file to pixels


def _decode(file: BinaryIO, frame: int = 0) -> Image.Image:
    """A frame of the file as RGB; where metadata is in the way, read without it."""
    if is_dicom(file):
        values, inverted = read_dicom(file)
        return ImageOps.invert(_from_array(values)) if inverted else _from_array(values)
    try:
        return _pixels(file, frame)
    except (ImageError, *_TOO_LARGE):
        raise
    except Exception:
        file.seek(0)
        bare = None if frame else without_metadata(file.read())
        if bare is None:
            raise
    return _pixels(BytesIO(bare), frame)


def _pixels(file: BinaryIO, frame: int) -> Image.Image:
    image = _at(file, frame)
    eight_bits = _deep_colours(image, file, frame) if image.tile else None
    if eight_bits is None:
        image.load()
        _check_depth(image, file)
    return _upright(_to_rgb(eight_bits or image), image)


def _at(file: BinaryIO, frame: int) -> ImageFile.ImageFile:
    image = Image.open(file)
    if frame:
        image.seek(frame)
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANAR) == IN_PLANES and tags.get(SAMPLES, 1) == 1:
        image = _plane(image, file)  # one plane is no matter of planes, but Pillow is confused
    for i, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and tile.args[0] in NATIVE:
            image.tile[i] = tile._replace(args=(NATIVE[tile.args[0]], *tile.args[1:]))
    return image


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """`rgb` turned as the EXIF tag of `image` says; a tag that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return rgb
    if orientation != 1:
        rgb.info.clear()  # the only metadata is the orientation
        rgb.getexif()[ORIENTATION] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded PIL image of any mode as a new image in 8-bit RGB, not turned."""
    tags, flat = getattr(image, "tag_v2", {}), image
    if image.mode.startswith("I;16"):
        flat = _eight_bits(np.asarray(image)[..., None], "L", image.info.get("transparency"))
    elif image.mode in ("I", "F"):
        flat = Image.fromarray(_scaled(np.asarray(image)))
    elif image.mode == "L" and tags.get(SAMPLE_FORMAT) == SIGNED:  # Pillow takes -1 for 255
        flat = Image.fromarray(_scaled(np.asarray(image).view(np.int8)))
    if flat is not image and tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        flat = ImageOps.invert(flat)  # Pillow does not invert these modes
    if flat.has_transparency_data:
        black = Image.new("RGBA", flat.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, flat.convert("RGBA"))
    return flat.convert("RGB")


# ---------------------------------------------------------------- more than 8 bits


def _scaled(values: np.ndarray, white: int | None = None) -> np.ndarray:
    """Values (H, W) or (H, W, C) of any type as uint8, by `read_image`'s rules or from 0 to `white`."""
    whole = np.issubdtype(values.dtype, np.integer)
    blocks = [values[start : start + ROWS] for start in range(0, len(values), ROWS)]
    finite = (block if whole else block[np.isfinite(block)] for block in blocks)
    extremes = [(float(part.min()), float(part.max())) for part in finite if part.size]
    if not extremes:
        raise ImageError("it holds no finite value")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if whole and low >= 0 and high <= WHITE_16:
        low, high = 0, white or _white(high)
    elif not whole and low >= 0 and high <= 1:
        low, high = 0, 1

    def scaled(block: np.ndarray) -> np.ndarray:
        block = np.nan_to_num(block.astype(np.float64), nan=low, posinf=high, neginf=low).clip(low, high)
        return np.round((block - low) / ((high - low) or 1) * 255).astype(np.uint8)

    return np.concatenate([scaled(block) for block in blocks])


def _white(high: float) -> int:
    """The largest value of the smallest usual depth that holds `high`."""
    return next(2**bits - 1 for bits in DEPTHS if high < 2**bits)


def _eight_bits(
    samples: np.ndarray, bands: str, transparent: int | tuple[int, ...] | None = None
) -> Image.Image:
    """Samples (H, W, C) within 0..65535 as a PIL image of 8 bits.

    Hidden colours do not count for the depth, and alpha is at least as deep as the colours.

    Args:
        samples: uint16.
        bands: "L", "LA", "RGB", "RGBA", "CMYK" or "RGBa", which is composited on black already.
        transparent: The colour that is not shown, if there is one.
    """
    alpha = samples[..., -1] if bands in ("LA", "RGBA") else None
    colours = samples[..., : {"LA": 1, "RGBA": 3, "RGBa": 3}.get(bands)]
    if transparent is not None:
        alpha = np.where((samples == np.asarray(transparent)).all(axis=-1), 0, WHITE_16)
    white = _white((colours if alpha is None else colours[alpha > 0]).max(initial=0))

    channels = [Image.fromarray(channel) for channel in np.moveaxis(_scaled(colours, white), -1, 0)]
    image = channels[0] if len(channels) == 1 else Image.merge(bands[: len(channels)], channels)
    if alpha is not None:
        image.putalpha(Image.fromarray(_scaled(alpha, max(white, _white(alpha.max())))))
    return image


def _deep_colours(image: ImageFile.ImageFile, file: BinaryIO, frame: int) -> Image.Image | None:
    """The colours of a file with more than 8 bits each, scaled as grey values are; None: they have 8.

    Pillow has no such mode and keeps the upper byte of each sample. But it is told in which order the two
    bytes come, so decoding once in either order gives both.
    """
    codec, _, offset, args = image.tile[0]
    args = args if isinstance(args, tuple) else (args,)
    (width, height), bands = image.size, image.mode
    tags, packed = getattr(image, "tag_v2", {}), DEEP.fullmatch(str(args[0]))
    if codec in ("ppm", "ppm_plain") and bands == "RGB" and args[-1] > 255:
        file.seek(offset)  # as a grey image, three pixels for one, it has its 16 bits
        header = b"%s %d %d %d\n" % (b"P5" if codec == "ppm" else b"P2", 3 * width, height, args[-1])
        grey = Image.open(BytesIO(header + file.read()))
        samples = np.asarray(grey).reshape(height, width, 3).astype(np.uint16)
    elif codec == "SGI16":  # planes, the lowest row first
        file.seek(offset)
        samples = np.frombuffer(file.read(2 * len(bands) * height * width), ">u2")
        samples = np.moveaxis(samples.reshape(-1, height, width)[:, ::-1], 0, -1)
    elif tags.get(PLANAR) == IN_PLANES and tags[BITS][0] == 16:
        samples = np.stack([np.asarray(_plane(image, file, i)) for i in range(len(bands))], axis=-1)
        bands = "RGBa" if tags.get(EXTRA_SAMPLES) == PREMULTIPLIED else bands
    elif packed and packed[1] == "LA":  # four bytes a pixel, as RGBA has
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        image.load()
        samples, bands = np.asarray(image).view(">u2"), "LA"
    elif packed:
        bands, order = packed.groups()
        halves = _half(image, bands, "B"), _half(_at(file, frame), bands, "L")
        big = order == "B" or (order == "N" and sys.byteorder == "big")
        samples = np.stack(halves, axis=-1).view(">u2" if big else "<u2")[..., 0]
        samples = samples if samples.ndim == 3 else samples[..., None]
    else:
        return None
    return _eight_bits(samples, bands, image.info.get("transparency"))


def _half(image: ImageFile.ImageFile, bands: str, order: str) -> np.ndarray:
    """One byte of every sample: the first for order "B", the second for "L"."""
    raw = "L;16" if (bands, order) == ("L", "L") else f"{bands.upper()};16{order}"
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def _plane(image: ImageFile.ImageFile, file: BinaryIO, i: int | None = None) -> ImageFile.ImageFile:
    """Colour i of a TIFF file that keeps each by itself, as an image in 16-bit grey; or the only plane."""
    tags, order = image.tag_v2, "<" if image.tag_v2.prefix == b"II" else ">"
    i, alone = (0, {}) if i is None else (i, {BITS: (16,), SAMPLES: (1,), PHOTOMETRIC: (MIN_IS_BLACK,)})
    left_out = {PLANAR, EXTRA_SAMPLES, *([ORIENTATION] if alone else []), *alone}
    for tag in (PIXEL_TAGS - left_out) & tags.keys():
        values = tags[tag] if isinstance(tags[tag], tuple) else (tags[tag],)
        n = len(values) // tags.get(SAMPLES, 1)
        alone[tag] = values[i * n : (i + 1) * n] if tag in PARTS else values
    file.seek(0)
    data = file.read()
    data += bytes(len(data) % 2)  # a directory starts at an even place
    behind = len(data) + 2 + 12 * len(alone) + 4  # values that fill more than four bytes
    table, rest = struct.pack(f"{order}H", len(alone)), b""
    for tag, values in sorted(alone.items()):
        where = values if len(values) == 1 else (behind + len(rest),)
        table += struct.pack(f"{order}HHII", tag, LONG, len(values), *where)
        rest += struct.pack(f"{order}{len(values)}I", *values) if len(values) > 1 else b""
    start = struct.pack(f"{order}2sHI", tags.prefix, 42, len(data))
    return Image.open(BytesIO(start + data[8:] + table + bytes(4) + rest))


def _check_depth(image: Image.Image, file: BinaryIO) -> None:
    """Refuse a JPEG 2000 image of more than 8 bits a colour that Pillow may have read wrong.

    It gives the upper 8 of them, rounded, and where that is 256, of white, it gives 0: with a 0 somewhere
    nobody knows which is black. Of 16 bits that were used in part, nothing is left.
    """
    if image.format == "JPEG2000" and len(image.getbands()) > 1:
        file.seek(0)
        start = b"\xff\x4f\xff\x51"  # of the segment that says how many bits a sample has
        bits, values = (file.read().partition(start)[2][38] & 0x7F) + 1, np.asarray(image)
        brightest = values[..., : 1 if image.mode == "LA" else 3].max()
        if bits > 8 and (values.min() == 0 or (bits == 16 and brightest < 2 ** (14 - 8))):
            raise ImageError(f"Pillow misreads JPEG 2000 of {bits} bits, mode {image.mode}. Save it as PNG")
