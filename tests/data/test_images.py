import io
import struct

import numpy as np
import pytest
from PIL import Image

from medvlp.data.images import ImageError, read_image

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


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_is_three_equal_channels(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RAMP))
    np.testing.assert_array_equal(read(path), grey(RAMP))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_file_of_8_or_12_bits_is_neither_black_nor_white(tmp_path, suffix):
    dull = RAMP // 2 + 70  # neither black nor white: nothing may stretch it
    path = saved(tmp_path / f"b.{suffix}", Image.fromarray(dull.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read(path), grey(dull))
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RAMP.astype(np.uint16) * 16 + 15))
    pixels = read(path)[..., 0].astype(int)
    assert pixels.max() == 255
    assert np.abs(pixels - RAMP).max() <= 1


def test_16_bit_tiff_whose_small_values_are_bright_is_inverted(tmp_path):
    values = RAMP.astype(np.uint16) * 257
    path = saved(tmp_path / "a.tif", Image.fromarray(values))
    min_is_black, min_is_white = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert path.read_bytes().count(min_is_black) == 1
    path.write_bytes(path.read_bytes().replace(min_is_black, min_is_white))
    np.testing.assert_array_equal(read(path), grey(255 - RAMP))


def test_float_between_0_and_1_keeps_that_range(tmp_path):
    values = np.array([[0.0, 0.25, 0.5]], dtype=np.float32)
    path = saved(tmp_path / "a.tif", Image.fromarray(values))
    assert read(path)[0, :, 0].tolist() == [0, 64, 128]


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


def test_alpha_is_composited_on_black_and_hides_the_colour_beneath(tmp_path):
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    out = read(path)[0].astype(int)
    assert out[0].tolist() == [200, 100, 50]
    assert out[1].tolist() == [0, 0, 0]
    assert np.abs(out[2] - [100, 50, 25]).max() <= 1
    path = saved(tmp_path / "grey.png", Image.fromarray(np.array([[[200, 255], [200, 0]]], dtype=np.uint8)))
    assert read(path)[0, :, 0].tolist() == [200, 0]


def test_palette_colours_and_its_transparent_entry(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.putdata([0, 1, 2])
    plain = saved(tmp_path / "plain.png", image)
    assert read(plain)[0].tolist() == [[255, 0, 0], [0, 255, 0], [9, 9, 9]]
    holes = saved(tmp_path / "holes.png", image, transparency=1)
    assert read(holes)[0].tolist() == [[255, 0, 0], [0, 0, 0], [9, 9, 9]]


def test_cmyk_and_black_and_white(tmp_path):
    red = saved(tmp_path / "red.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)))
    assert read(red)[0, 0].tolist() == [255, 0, 0]
    bits = saved(tmp_path / "bits.png", Image.fromarray(RAMP > 127))
    np.testing.assert_array_equal(read(bits), grey((RAMP > 127) * 255))


def test_exif_orientation_is_applied(tmp_path):
    upright = np.zeros((20, 40), dtype=np.uint8)
    upright[:, :20] = 255  # bright on the left
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    stored = Image.fromarray(upright).rotate(90, expand=True)
    path = saved(tmp_path / "a.jpg", stored, exif=exif, quality=95)
    out = read(path)
    assert out.shape == (20, 40, 3)
    assert out[:, :18].min() > 240 and out[:, 22:].max() < 15


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("L", (4, 4), 50), Image.new("L", (4, 4), 200)]
    path = saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert read(path).max() == 50


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


def test_what_is_no_image_is_named_with_its_reason(tmp_path):
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("not an image")
    with pytest.raises(ImageError, match=r"empty\.png: the file is empty"):
        read_image(empty)
    with pytest.raises(ImageError, match=r"text\.png: it is no image that Pillow knows"):
        read_image(text)
    with pytest.raises(ImageError, match="it is a folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no image file .*nowhere\.png"):
        read_image(tmp_path / "nowhere.png")
