"""Takes the metadata out of picture files: where it is damaged, Pillow would not read the pixels."""

import struct
import zlib

from PIL import Image

ORIENTATION, EXIF = 274, b"Exif\0\0"  # the tag; how EXIF starts in a JPEG file
# The TIFF tags that say where the pixels are and how they are packed.
PIXEL_TAGS = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323}
PIXEL_TAGS |= {324, 325, 338, 339, 347, 529, 530, 531, 532}


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
