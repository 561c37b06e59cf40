import errno
import io
import os
import socket
import struct
import tracemalloc
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from medvlp.data.images import NO_PICTURES, ImageError, read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def read(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_file_of_8_or_12_bits_is_neither_black_nor_white(tmp_path, suffix):
    dull = RAMP // 2 + 70  # neither black nor white: nothing may stretch it
    path = saved(tmp_path / f"b.{suffix}", Image.fromarray(dull.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read(path), grey(dull))
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RAMP.astype(np.uint16) * 16 + 15))
    pixels = read(path)[..., 0].astype(int)
    assert pixels.max() == 255
    assert np.abs(pixels - RAMP).max() <= 1


def test_other_floats_and_negative_values_go_from_minimum_to_maximum(tmp_path):
    hounsfield = np.array([[-1000, 0, 1000]])
    as_float = saved(tmp_path / "f.tif", Image.fromarray(hounsfield.astype(np.float32)))
    as_int = saved(tmp_path / "i.tif", Image.fromarray(hounsfield.astype(np.int32)))
    assert read(as_float)[0, :, 0].tolist() == read(as_int)[0, :, 0].tolist() == [0, 128, 255]


def test_nan_is_black_and_an_image_of_nothing_else_is_broken(tmp_path):
    some = saved(tmp_path / "some.tif", Image.fromarray(np.array([[np.nan, 2, 4, np.inf]], dtype=np.float32)))
    assert read(some)[0, :, 0].tolist() == [0, 0, 255, 255]
    none = saved(tmp_path / "none.tif", Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)))
    with pytest.raises(ImageError, match=r"none\.tif.*no finite value"):
        read_image(none)


def test_a_palettes_transparent_entry_is_black(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.putdata([0, 1, 2])
    holes = saved(tmp_path / "holes.png", image, transparency=1)
    assert read(holes)[0].tolist() == [[255, 0, 0], [0, 0, 0], [9, 9, 9]]


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("L", (4, 4), 50), Image.new("L", (4, 4), 200)]
    path = saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert read(path).max() == 50


# ---------------------------------------------------------------- every container, mode and way in

ROWS, COLUMNS = 11, 14
COLOURS = np.add.outer(np.arange(ROWS) * 14, np.arange(COLUMNS) * 6)[..., None] + [0, 9, 30]  # up to 248
ALPHA = np.tile(np.array([0, 128] + [255] * (COLUMNS - 2)), (ROWS, 1))


def read_every_way(data, tmp_path):
    """What is read from a path, from bytes and from PIL images, open and loaded, is the same; it."""
    path = tmp_path / "image"
    path.write_bytes(data)
    pixels = read(path)
    np.testing.assert_array_equal(read(data), pixels)
    np.testing.assert_array_equal(read(io.BytesIO(data)), pixels)
    with Image.open(path) as from_path, Image.open(io.BytesIO(data)) as from_bytes:
        for image in (from_path, from_bytes):
            np.testing.assert_array_equal(read(image), pixels)
            np.testing.assert_array_equal(read(image), pixels)  # nothing was taken from it
    return pixels.astype(int)


def white_of(values):
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if np.max(values) < 2**bits)


def as_8_bits(values):
    """The rule for whole values from 0 to 65535."""
    return np.round(values / white_of(values) * 255)


def on_black(colours, alpha):
    return np.round(colours * (alpha / 255)[..., None])


def palette_image(colours):
    image = Image.fromarray(np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS))
    image.putpalette(colours.astype(np.uint8).reshape(-1).tolist())
    return image


LIGHT = COLOURS[..., 0]
LA, RGBA = np.stack([LIGHT, ALPHA], axis=-1), np.concatenate([COLOURS, ALPHA[..., None]], axis=-1)
PIL_MODES = {
    "1": (Image.fromarray(LIGHT > 99), grey((LIGHT > 99) * 255)),
    "L": (Image.fromarray(LIGHT.astype(np.uint8)), grey(LIGHT)),
    "LA": (Image.fromarray(LA.astype(np.uint8)), on_black(grey(LIGHT).astype(int), ALPHA)),
    "P": (palette_image(COLOURS), COLOURS),
    "RGB": (Image.fromarray(COLOURS.astype(np.uint8)), COLOURS),
    "RGBA": (Image.fromarray(RGBA.astype(np.uint8)), on_black(COLOURS, ALPHA)),
    "CMYK": (Image.fromarray((255 - COLOURS).astype(np.uint8)).convert("CMYK"), 255 - COLOURS),
    "I;16": (Image.fromarray((LIGHT * 16).astype(np.uint16)), grey(as_8_bits(LIGHT * 16))),
    "I": (Image.fromarray((LIGHT * 200 + 7).astype(np.int32)), grey(as_8_bits(LIGHT * 200 + 7))),
    "F": (Image.fromarray((LIGHT / 255).astype(np.float32)), grey(LIGHT)),
}
EXACT = "BMP DIB IM JPEG2000 MSP PCX PNG PPM QOI SGI TGA TIFF WEBP XBM"
LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "JPEG2000": {"irreversible": False}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:PIL")
def test_every_container_and_mode_that_pillow_writes(tmp_path):
    Image.init()
    asked = []
    for kind, (mode, (image, pixels)) in product(sorted(Image.SAVE.keys() - NO_PICTURES), PIL_MODES.items()):
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **LOSSLESS.get(kind, {}))
            again = Image.open(buffer)
            stored = again.mode
            again.load()
            assert again.has_transparency_data in (True, False)  # Pillow itself stumbles over some
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            continue  # it does not hold such images, or is no picture
        out = read_every_way(buffer.getvalue(), tmp_path)
        asked.append((kind, mode))
        kept = stored[0] in "IF" if mode in ("I;16", "I", "F") else mode != "RGBA" or "A" in stored
        if kind in EXACT.split() and kept:
            assert np.abs(out - pixels).max() <= 1, (kind, mode)
    assert len(asked) > 60 and len({kind for kind, _ in asked}) > 20


def chunk(name, data, crc=None):
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png16(samples, *chunks):
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[-1]]
    header = struct.pack(">IIBBBBB", COLUMNS, ROWS, 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ppm16(samples, plain=False):
    head = b"%s\n%d %d\n65535\n" % (b"P3" if plain else b"P6", COLUMNS, ROWS)
    numbers = b" ".join(b"%d" % value for value in samples.reshape(-1))
    return head + (numbers if plain else samples.astype(">u2").tobytes())


def sgi16(samples, rle=False):
    channels = samples.shape[-1]
    head = struct.pack(">hBBHHHH", 474, rle, 2, 3 if channels > 1 else 2, COLUMNS, ROWS, channels)
    lines = np.moveaxis(samples[::-1], -1, 0).reshape(-1, COLUMNS).astype(">u2")
    if not rle:
        return head.ljust(512, b"\0") + lines.tobytes()
    copied = struct.pack(">H", 0x80 | COLUMNS)  # so many values follow as they are
    packed = [copied + line.tobytes() + b"\0\0" for line in lines]
    starts = [512 + 8 * len(packed) + i * len(packed[0]) for i in range(len(packed))]
    tables = struct.pack(f">{len(starts)}I", *starts) + struct.pack(f">{len(starts)}I", *map(len, packed))
    return head.ljust(512, b"\0") + tables + b"".join(packed)


def tiff(samples, order="<", planes=False, packed=False, photometric=2, extra=None, **tags):
    """Samples (H, W, C) in strips of 5 rows, one after the other or each channel by itself."""
    rows = 5
    channels = samples.shape[-1]
    stored = samples.astype(samples.dtype.newbyteorder(order))
    parts = np.moveaxis(stored, -1, 0)[..., None] if planes else stored[None]
    strips = [part[start : start + rows].tobytes() for part in parts for start in range(0, ROWS, rows)]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    starts = np.cumsum([8, *map(len, strips)])[:-1]
    whole = {256: COLUMNS, 257: ROWS, 259: 8 if packed else 1, 262: photometric, 277: channels, 278: rows}
    whole |= {258: [8 * samples.itemsize] * channels, 273: starts, 279: [*map(len, strips)]}
    whole |= {284: 2 if planes else 1, 339: [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * channels}
    whole |= tags.get("more", {}) | ({338: extra} if extra is not None else {})
    body = b"".join(strips)
    body += bytes(len(body) % 2)
    behind = 8 + len(body) + 2 + 12 * len(whole) + 4
    table, rest = struct.pack(f"{order}H", len(whole)), b""
    for tag, value in sorted(whole.items()):
        values = np.atleast_1d(value).tolist()
        inline = values if len(values) == 1 else [behind + len(rest)]
        table += struct.pack(f"{order}HHII", tag, 4, len(values), *inline)
        rest += struct.pack(f"{order}{len(values)}I", *values) if len(values) > 1 else b""
    mark = b"II" if order == "<" else b"MM"
    return struct.pack(f"{order}2sHI", mark, 42, 8 + len(body)) + body + table + bytes(4) + rest


DEEP = {  # container: what writes samples of 16 bits into it, and with how many channels
    "PNG": (png16, (1, 2, 3, 4)),
    "PPM": (ppm16, (3,)),
    "PPM in letters": (lambda samples: ppm16(samples, plain=True), (3,)),
    "SGI": (sgi16, (1, 3, 4)),
    "SGI, packed": (lambda samples: sgi16(samples, rle=True), (1, 3, 4)),
} | {
    f"TIFF {order}{' in planes' * planes}{' packed' * packed}": (
        lambda samples, how=(order, planes, packed): tiff(
            samples,
            *how,
            photometric=2 if samples.shape[-1] > 1 else 1,
            extra=2 if samples.shape[-1] == 4 else None,
        ),
        (1, 3, 4),
    )
    for order, planes, packed in product("<>", (False, True), (False, True))
}


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("container", DEEP)
def test_colours_of_16_bits_are_scaled_as_grey_is(tmp_path, container, bits):
    """Values of any usual depth: the brightest usual value is white, whichever channel has it."""
    write, all_channels = DEEP[container]
    white = 2**bits - 1
    for channels in all_channels:
        colours = np.round(COLOURS[..., : channels if channels in (1, 3) else channels - 1] / 248 * white)
        samples, expected = colours, as_8_bits(colours)
        if channels in (2, 4):
            samples = np.concatenate([colours, np.round(ALPHA / 255 * white)[..., None]], axis=-1)
            expected = on_black(expected, ALPHA)
        out = read_every_way(write(samples.astype(np.uint16)), tmp_path)
        assert np.abs(out - expected).max() <= (channels in (2, 4)), channels  # alpha is composited in 8 bits


def jpeg2000(samples):
    """A JPEG 2000 image of 16 bits a colour, which Pillow does not write: its grey ones, joined."""
    streams = []
    for channel in np.moveaxis(samples.astype(np.uint16), -1, 0):
        buffer = io.BytesIO()
        Image.fromarray(channel).save(buffer, "JPEG2000", no_jp2=True, num_resolutions=1)
        streams.append(buffer.getvalue())
    n, head = len(streams), streams[0][: streams[0].index(b"\xff\x90")]
    sizes = struct.pack(">H", 38 + 3 * n) + head[6:40] + struct.pack(">H", n) + head[42:45] * n
    head = head[:4] + sizes + head[45:]
    body = b"".join(stream[stream.index(b"\xff\x93") + 2 : -2] for stream in streams)
    tile = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14 + len(body), 0, 1) + b"\xff\x93"
    return head + tile + body + b"\xff\xd9"


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_jpeg_2000_of_16_bits_a_colour_is_right_or_refused(tmp_path, channels):
    colours = (COLOURS if channels > 2 else COLOURS[..., :1]) * 200 + 2000  # neither black nor white
    expected, opaque = as_8_bits(colours), np.full((ROWS, COLUMNS, 1 - channels % 2), 65280)  # 255 of 255

    def with_alpha(samples):
        return jpeg2000(np.concatenate([samples, opaque], axis=-1))

    out = read_every_way(with_alpha(colours), tmp_path)
    assert np.abs(out - expected).max() <= 1
    white = np.where(colours == colours.max(), 65535, colours)
    for samples in (white, colours // 8):
        with pytest.raises(ImageError, match="misreads JPEG 2000 of 16 bits, mode.*PNG"):
            read_image(with_alpha(samples))


def test_a_16_bit_copy_of_colours_reads_like_the_original(tmp_path):
    samples = (COLOURS * 257).astype(np.uint16)
    for container, (write, channels) in DEEP.items():
        if 3 in channels:
            out = read_every_way(write(samples), tmp_path)
            np.testing.assert_array_equal(out, COLOURS, err_msg=container)


def test_hidden_colours_do_not_make_the_others_dark(tmp_path):
    """What alpha or a transparent colour hides may be brighter than all that is shown."""
    colours = np.round(COLOURS / 248 * 4095)
    colours[0] = 65535
    alpha = np.full((ROWS, COLUMNS, 1), 4095)
    alpha[0] = 0
    expected = np.round(colours / 4095 * 255)
    expected[0] = 0
    out = read_every_way(png16(np.concatenate([colours, alpha], axis=-1)), tmp_path)
    assert np.abs(out - expected).max() <= 1
    for channels in (1, 3):
        hidden = chunk(b"tRNS", struct.pack(f">{channels}H", *[65535] * channels))
        out = read_every_way(png16(colours[..., :channels], hidden), tmp_path)
        shown = np.round(colours[..., :channels] / white_of(colours[1:, :, :channels]) * 255)
        assert np.abs(out[1:] - shown[1:]).max() <= 1 and not out[0].any()


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("extra", "photometric"), [(0, 2), (1, 2), (None, 5)])
def test_tiff_channels_that_are_no_plain_colours(tmp_path, planes, extra, photometric):
    """A fourth channel that is not shown, colours that are composited on black already, and ink."""
    four = np.concatenate([COLOURS, np.full((ROWS, COLUMNS, 1), 255)], axis=-1)
    four[:, 0, 3] = 250  # for composited colours: nearly opaque
    data = tiff((four / 255 * 4095).round().astype(np.uint16), "<", planes, True, photometric, extra)
    expected = COLOURS
    if photometric == 5:
        expected = np.asarray(Image.fromarray(four.astype(np.uint8), "CMYK").convert("RGB"))
    assert np.abs(read_every_way(data, tmp_path) - expected).max() <= 1


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_grey_tiff_of_any_type_is_right_or_refused(tmp_path, dtype):
    """Either byte order, compressed or not, small numbers dark or bright: never wrong and silent."""
    values = (LIGHT[..., None] - (100 if dtype[0] == "i" else 0)) / (500 if dtype[0] == "f" else 1)
    values = (values * (1 if dtype[1] == "1" or dtype[0] == "f" else 16)).astype(dtype)
    numbers = values.astype(float)
    low, white = (0, white_of(numbers)) if dtype[0] == "u" else (numbers.min(), numbers.max())
    low, white = (0, 1) if dtype[0] == "f" else (low, white)
    expected, read_ones = np.round((numbers - low) / (white - low) * 255), 0
    for order, packed, min_is_black in product("<>", (False, True), (True, False)):
        data = tiff(values, order, packed=packed, photometric=int(min_is_black))
        try:
            out = read_every_way(data, tmp_path)
        except ImageError as error:
            assert "no image that Pillow knows" in str(error)
            continue
        read_ones += 1
        np.testing.assert_array_equal(out, grey((expected if min_is_black else 255 - expected)[..., 0]))
    assert read_ones >= {"u1": 8, "i1": 4, "u2": 6, "i2": 4, "u4": 2, "i4": 4, "f4": 8}.get(dtype, 0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_deep_colours_are_turned_once(tmp_path, orientation):
    upright = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # quarter turns to the left
    exif = Image.Exif()
    exif[274] = orientation
    samples = np.round(COLOURS / 248 * 4095).astype(np.uint16)
    files = [png16(samples, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))]
    files += [tiff(samples, planes=planes, more={274: orientation}) for planes in (False, True)]
    for data in files:
        out = read_every_way(data, tmp_path)
        np.testing.assert_array_equal(out, np.rot90(as_8_bits(samples), upright))


def test_a_page_that_a_pil_image_shows_is_the_one_read(tmp_path):
    pages = [Image.fromarray(RAMP.astype(np.uint16) * factor) for factor in (1, 16, 257)]
    data = io.BytesIO()
    pages[0].save(data, "tiff", save_all=True, append_images=pages[1:])
    with Image.open(data) as image:
        for page in (2, 0, 1):
            image.seek(page)
            assert np.abs(read(image).astype(int) - grey(RAMP)).max() <= (page == 1)


def test_a_pil_image_whose_file_is_closed_says_so(tmp_path):
    with Image.open(saved(tmp_path / "a.png", Image.fromarray(RAMP))) as image:
        pass
    with pytest.raises(ImageError, match=r"a\.png.*its file is closed.*inside the with"):
        read_image(image)


# ---------------------------------------------------------------- damage


def orientation_tag(value):
    exif = Image.Exif()
    exif[274] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


def segment(marker, inside):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(inside) + 2) + inside


BIG = zlib.compress(bytes(3 * 2**20))  # more than Pillow takes for a text
NOT_EXIF = (b"garbage!", b"II*\0", b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x84\x03\0\0\x9f\x86\1\0\0\0\0\0")
PNG_CHUNKS = {
    "EXIF": [chunk(b"eXIf", exif) for exif in NOT_EXIF],
    "EXIF in text": [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n   12\nzz\n"))],
    "ICC": [chunk(b"iCCP", inside) for inside in (b"", b"x", b"x\0\5abc", b"x\0\0abc", b"x\0\0" + BIG)],
    "text": [
        chunk(b"zTXt", b"k\0\0" + BIG),
        chunk(b"zTXt", b"k\0\5abc"),
        chunk(b"iTXt", b"k\0\1\0en\0\0" + BIG),
        chunk(b"tEXt", b"k\0v", crc=1),
        b"".join(chunk(b"tEXt", b"k\0" + bytes(2**20)) for _ in range(65)),
    ],
    "sizes": [chunk(name, b"\0") for name in (b"gAMA", b"cHRM", b"pHYs", b"tIME", b"bKGD", b"acTL", b"fcTL")],
    "own": [chunk(b"prVt", b"abc", crc=3), chunk(b"sRGB", b""), chunk(b"pHYs", bytes(9), crc=1)],
    "frames": [chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">I22x", 5))],
}
JPEG_SEGMENTS = {
    "EXIF": [segment(0xE1, b"Exif\0\0" + exif) for exif in NOT_EXIF],
    "ICC": [segment(0xE2, b"ICC_PROFILE\0" + inside) for inside in (b"", b"\2\3abc")],
    "maker": [segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe"), segment(0xFE, b"")],
    "Photoshop": [segment(0xED, b"Photoshop 3.0\0" + inside) for inside in (b"8BIM", b"8BIM\3\xed", b"8B")],
    "frames": [segment(0xE2, b"MPF\0garbage")],
}
TIFF_TAGS = {
    "text": [{270: [9**7] * 3}, {700: 5}, {306: 2**31}],
    "ICC": [{34675: 2**31}],
    "EXIF": [{34665: 2**31}, {34665: 8}, {34853: 2**31}],
    "sizes": [{282: 0}, {283: [0, 0, 0]}, {296: 77}],
}


def damaged_metadata():
    """Pictures whose pixels are whole, by what is not."""
    image = Image.fromarray(COLOURS.astype(np.uint8))
    whole = {}
    for kind, options in {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        whole[kind] = buffer.getvalue()
    png, jpeg = whole["PNG"], whole["JPEG"]
    for what, chunks in PNG_CHUNKS.items():
        for one in chunks:
            yield "PNG", what, png[:33] + one + png[33:]
            if what == "text":
                yield "PNG", f"{what} behind the pixels", png[:-12] + one + png[-12:]
    for what, segments in JPEG_SEGMENTS.items():
        for one in segments:
            yield "JPEG", what, jpeg[:2] + one + jpeg[2:]
    for what, tags in TIFF_TAGS.items():
        for more, packed in product(tags, (False, True)):
            data = tiff(COLOURS.astype(np.uint8), packed=packed, more=more)
            yield "TIFF", what, data
            # the same tags as texts of 900 letters that lie far beyond the end of the file
            for tag in more:
                entry = data.rindex(struct.pack("<HH", tag, 4))
                far = struct.pack("<HHII", tag, 2, 900, 9**7)
                yield "TIFF", what, data[:entry] + far + data[entry + 12 :]
    for exif in NOT_EXIF:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, exif=b"Exif\0\0" + exif)
        yield "WEBP", "EXIF", buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_pixels_are_read_whatever_is_wrong_with_the_metadata(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(COLOURS.astype(np.uint8)).save(jpeg, "JPEG", quality=95)
    as_jpeg = read(jpeg.getvalue())
    cases = list(damaged_metadata())
    for kind, what, data in cases:
        pixels = read(saved_bytes(tmp_path / "a", data))
        expected = as_jpeg if kind == "JPEG" else COLOURS
        np.testing.assert_array_equal(pixels, expected, err_msg=f"{kind}: {what}")
    assert len(cases) > 60


def saved_bytes(path, data):
    path.write_bytes(data)
    return path


def test_an_orientation_that_can_be_read_is_applied_beside_broken_metadata(tmp_path):
    image = Image.fromarray(COLOURS.astype(np.uint8))
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    image.save(jpeg, "JPEG", quality=95)
    turned = chunk(b"eXIf", orientation_tag(6)) + PNG_CHUNKS["text"][0]
    data = png.getvalue()[:33] + turned + png.getvalue()[33:]
    np.testing.assert_array_equal(read(data), np.rot90(COLOURS, 3))
    turned = segment(0xE1, b"Exif\0\0" + orientation_tag(6)) + JPEG_SEGMENTS["ICC"][0]
    data = jpeg.getvalue()[:2] + turned + jpeg.getvalue()[2:]
    np.testing.assert_array_equal(read(data), np.rot90(read(jpeg.getvalue()), 3))


def test_damaged_pixels_stay_damaged_without_the_metadata(tmp_path):
    """Leaving out metadata is no way round a file that is cut, or whose pixels are broken."""
    for kind, what, data in damaged_metadata():
        if (kind, what) in (("PNG", "ICC"), ("JPEG", "ICC")):
            with pytest.raises(ImageError):
                read_image(data[: int(len(data) * 0.7)])


def test_a_very_large_image_says_its_size_the_limit_and_what_to_do(tmp_path, monkeypatch):
    path = saved(tmp_path / "large.png", Image.new("L", (200, 150)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_000)
    message = r"large\.png: it has 30,000 pixels, .*limit.*is 24,000\. Make it smaller or.*MAX_IMAGE_PIXELS"
    with pytest.raises(ImageError, match=message):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path).size == (200, 150)


def test_a_16_bit_image_needs_little_memory_beside_its_own(tmp_path):
    """Of what numpy holds, where the whole image in float64 would be 8 bytes a pixel several times over."""
    values = np.zeros((1500, 1500), dtype=np.uint16)
    values[::7] = 4095
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.float32))):
        tracemalloc.start()
        try:
            read_image(image)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 12 * values.size, f"{peak / values.size:.1f} bytes a pixel"


def test_what_memory_does_not_hold_is_an_image_error(tmp_path, monkeypatch):
    def too_much(*args, **options):
        raise MemoryError

    path = saved(tmp_path / "a.png", Image.fromarray(RAMP.astype(np.uint16)))
    monkeypatch.setattr(np, "asarray", too_much)
    with pytest.raises(ImageError, match=r"a\.png: there is not enough memory for it"):
        read_image(path)


# ---------------------------------------------------------------- what is no file


def no_files(folder):
    """Paths at which there is no file to read, each with what the error says."""
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "socket.png"))
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    yield folder / "text.png", "it is no image that Pillow knows"
    yield folder / "pipe.png", "it is a pipe, a socket or a device"
    yield folder / "socket.png", "it is a pipe, a socket or a device"
    yield folder / "device.png", "it is a pipe, a socket or a device"
    yield folder / "folder.png", "it is a folder"
    yield folder / "empty.png", "the file is empty"
    yield folder / f"{'long' * 1250}.png", "File name too long"
    yield folder / "nul\0.png", "null"


def test_what_is_no_file_is_an_image_error_and_no_wait(tmp_path):
    for path, reason in no_files(tmp_path):
        with pytest.raises(ImageError, match=f"cannot read image .*{reason}") as caught:
            read_image(path)
        assert len(str(caught.value)) < 1000
    for missing in (tmp_path / "nowhere.png", tmp_path / "empty.png" / "below.png"):
        with pytest.raises(FileNotFoundError, match=f"there is no image file .*{missing.name}"):
            read_image(missing)


@pytest.mark.parametrize("error", [PermissionError, OSError])
def test_a_file_that_may_not_be_read_is_an_image_error(tmp_path, monkeypatch, error):
    path = saved(tmp_path / "mine.png", Image.fromarray(RAMP))

    def refused(*args, **options):
        raise error(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ImageError, match=r"cannot read image .*mine\.png: Permission denied"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_broken(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, {"png": "png", "jpg": "jpeg", "tif": "tiff"}[suffix])
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: int(kept * len(buffer.getvalue()))])
    with pytest.raises(ImageError, match=rf"cannot read image .*cut\.{suffix}: .* Replace or remove"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_is_one_kind_of_error(tmp_path):
    """Random bytes overwritten in small files: either it reads, or it is an ImageError."""
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for kind in ("png", "jpeg", "tiff", "gif", "bmp", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(RAMP).save(buffer, kind)
        whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        failures = 0
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            try:
                read_image(path)
            except ImageError:
                failures += 1
        assert failures or kind == "bmp"
