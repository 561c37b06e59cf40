"""Files that Pillow does not read alone: pictures with damaged metadata, and DICOM, which needs pydicom."""

import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from medvlp.data.errors import ImageError

ORIENTATION, EXIF = 274, b"Exif\0\0"  # the tag; how EXIF starts in a JPEG file
# The TIFF tags that say where the pixels are and how they are packed.
PIXEL_TAGS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323}
PIXEL_TAGS |= {324, 325, 338, 339, 347, 529, 530, 531, 532}
BEYOND = 2**40  # darker and brighter than every value


def without_metadata(data: bytes) -> bytes | None:
    """A PNG, JPEG or TIFF file with what its pixels need and, where it can be read, the EXIF; else None."""
    strip = {b"\x89PNG": _bare_png, b"II*\0": _bare_tiff, b"MM\0*": _bare_tiff}.get(data[:4])
    strip = _bare_jpeg if data.startswith(b"\xff\xd8\xff") else strip
    try:
        return strip and strip(data)
    except (struct.error, LookupError):
        return None


def _bare_png(data: bytes) -> bytes:
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at : at + 12 + length]
        whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and whole and _is_exif(chunk[8:-4])):
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the scan
        segment = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4])]
        marker, inside = segment[1], segment[4:]
        about_colour = marker in (0xE0, 0xEE) and len(inside) >= 12  # JFIF, Adobe
        if marker < 0xE0 or about_colour or (inside.startswith(EXIF) and _is_exif(inside[len(EXIF) :])):
            kept.append(segment)
        at += len(segment)
    return b"".join([*kept, data[at:]])


def _bare_tiff(data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack(f"{order}I", data[4:8])
    (n,) = struct.unpack(f"{order}H", data[at : at + 2])
    entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(n)]
    entries = [entry for entry in entries if struct.unpack(f"{order}H", entry[:2])[0] in PIXEL_TAGS]
    data += bytes(len(data) % 2)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack(f"{order}I", len(data)) + data[8:] + table


def _is_exif(data: bytes) -> bool:
    exif = Image.Exif()
    try:
        exif.load(data)
        return ORIENTATION in dict(exif)
    except Exception:  # whatever Pillow stumbles over
        return False


def is_dicom(file: BinaryIO) -> bool:
    """Whether the file says that it is DICOM; it is left at its start."""
    file.seek(0)
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def read_dicom(file: BinaryIO) -> tuple[np.ndarray, bool]:
    """The values of a file's one picture, and whether the lowest is white.

    Stored values are rescaled (slope and intercept, or a table) and windowed, by the first window of several.
    Colours are left as they are.

    Returns:
        (H, W) floats from 0 to 1 where there is a window, else (H, W) values, or colours (H, W, 3); and True
        for MONOCHROME1.

    Raises:
        ImageError: pydicom or a decoder is not installed; no picture, or several.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_windowing, get_decoder, pixel_array
    except ImportError as error:
        raise ImageError("it is a DICOM file, which pydicom reads: pip install 'medvlp[dicom]'") from error
    data = dcmread(file)
    if "PixelData" not in data:
        raise ImageError("it is a DICOM file without a picture")
    if (frames := int(data.get("NumberOfFrames") or 1)) > 1:
        raise ImageError(f"it is a DICOM file of {frames} frames; save the one that is meant as a file")
    pixels, most = data.Rows * data.Columns, Image.MAX_IMAGE_PIXELS
    if most and pixels > 2 * most:  # as Pillow has it
        raise Image.DecompressionBombError(f"{pixels} pixels, more than {most}")
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise ImageError(f"its pixels are compressed ({syntax.name}): pip install 'pylibjpeg[all]'")
    values, kind = pixel_array(data), data.PhotometricInterpretation
    if values.ndim == 3:
        return values, False
    if not kind.startswith("MONOCHROME"):
        raise ImageError(f"it is a DICOM file of {kind}; MONOCHROME1 and 2, RGB and YBR are read")
    values = apply_modality_lut(values, data)
    if not data.get("WindowWidth") and "VOILUTSequence" in data:
        raise ImageError("it is a DICOM file with a table (VOI LUT) in the place of a window; save it as PNG")
    if data.get("WindowWidth"):
        with np.errstate(over="ignore"):
            shown = apply_windowing(np.append(values, [-BEYOND, BEYOND]), data)
        black, white = shown[-2:]
        values = (shown[:-2].reshape(values.shape) - black) / (white - black)
    return values, kind == "MONOCHROME1"
