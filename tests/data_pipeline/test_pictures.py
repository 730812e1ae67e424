"""Every form that a photograph or a mask may have is read with the right value, or refused by name."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.prepare.pictures import read_mask, read_pixels
from tests.data_pipeline import astronaut

RAMP = np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 8, axis=0)  # 64 levels, 0 to 252
MASK = np.zeros((8, 64), np.uint8)
MASK[2:6, 10:40] = 255
SOFT = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8)[None], 8, axis=0)


def saved(tmp_path, image: Image.Image | np.ndarray, name: str = "picture.png", **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name, **options)
    return tmp_path / name


def turned_clockwise() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_16_bit_grey_photograph_keeps_its_levels(tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        pixels = read_pixels(saved(tmp_path, deep, name))
        np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, -1))
        assert len(np.unique(pixels)) == 64
    np.testing.assert_array_equal(read_pixels(saved(tmp_path, RAMP.astype(np.int32) * 257, "i.tif"))[..., 1], RAMP)


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[..., None],
        RAMP.astype(np.uint16),  # 8 bits in a wider type
        RAMP.astype(np.int64),
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(np.float32),
        RAMP / 255,
        np.stack([RAMP / 255] * 3, -1),
        np.stack([RAMP, np.full_like(RAMP, 255)], -1),
    ],
)
def test_arrays_of_another_type_become_bytes(array):
    np.testing.assert_array_equal(read_pixels(array), np.stack([RAMP] * 3, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F"])
def test_files_of_every_mode_show_the_same(mode, tmp_path):
    name = {"CMYK": "x.tif", "YCbCr": "x.tif", "F": "x.tif"}.get(mode, "x.png")
    picture = Image.fromarray(RAMP).convert(mode)
    for pixels in (read_pixels(saved(tmp_path, picture, name)), read_pixels(picture)):
        np.testing.assert_allclose(pixels, np.stack([RAMP] * 3, -1), atol=1)


def test_a_picture_in_memory_is_turned_as_its_file(tmp_path):
    with Image.open(saved(tmp_path, RAMP, exif=turned_clockwise())) as picture:
        np.testing.assert_array_equal(read_pixels(picture), read_pixels(tmp_path / "picture.png"))
        assert read_pixels(picture).shape == (64, 8, 3)
        np.testing.assert_array_equal(read_mask(picture, may_be_all=True), RAMP.T[:, ::-1])


def test_a_bilevel_photograph_is_black_and_white(tmp_path):
    pixels = read_pixels(saved(tmp_path, Image.fromarray(MASK > 0)))
    np.testing.assert_array_equal(pixels, np.stack([MASK] * 3, -1))


def test_what_is_transparent_lies_on_white(tmp_path):
    cut_out = np.dstack([RAMP, RAMP, RAMP, MASK])
    expected = np.where(MASK[..., None] > 0, RAMP[..., None], 255)
    np.testing.assert_array_equal(read_pixels(saved(tmp_path, cut_out)), np.repeat(expected, 3, -1))
    np.testing.assert_array_equal(read_pixels(cut_out)[..., 0], expected[..., 0])
    palette = Image.fromarray(RAMP).convert("P")
    pixels = read_pixels(saved(tmp_path, palette, transparency=int(np.array(palette)[0, 3])))
    assert (pixels[:, 3] == 255).all() and (pixels[:, 4] == 16).all()


def test_the_first_picture_of_a_phones_file_is_the_photograph(tmp_path):
    depth = Image.new("RGB", (32, 4))
    path = saved(
        tmp_path, Image.fromarray(RAMP).convert("RGB"), "x.mpo", save_all=True, append_images=[depth], quality=95
    )
    np.testing.assert_allclose(read_pixels(path)[..., 0], RAMP, atol=6)


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_several_pages_or_frames_are_refused(name, tmp_path):
    path = saved(tmp_path, RAMP, name, save_all=True, append_images=[Image.fromarray(RAMP[::-1, ::-1].copy())])
    with pytest.raises(ValueError, match=f"expected one picture at .*{name}, got 2 pages or frames"):
        read_pixels(path)


def test_a_truncated_file_is_named(tmp_path):
    for name in ("x.png", "x.jpg", "x.tif", "x.webp"):
        whole = saved(tmp_path, astronaut.pixels(), name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"expected a picture at .*{name}, got a file that can't be read"):
            read_pixels(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP.astype(np.uint16) * 16, "8 bits .* or 16 bits .*, got 0 to 4032"),  # 12 bits, or very dark
        (RAMP.astype(np.int32) * 1000, "got 0 to 252000"),
        (RAMP / 127.5 - 1, "got -1 to"),
        (np.where(RAMP > 0, RAMP / 255, np.nan), "got nan to nan"),
        (RAMP // 200, "expected a photograph, got levels from 0 to 1 of 255 only"),
        (np.full((8, 8, 3), 77, np.uint8), "got levels from 77 to 77"),
        (np.dstack([RAMP, RAMP, RAMP, 0 * RAMP]), "got levels from 255 to 255"),
        (np.stack([RAMP] * 3), r"expected an array \(height, width, channels\), got shape \(3, 8, 64\)"),
    ],
)
def test_levels_of_an_unknown_scale_or_of_no_picture_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_pixels(array)


CUT_OUT = np.dstack([MASK * 0 + 90, MASK * 0 + 20, MASK * 0 + 30, MASK])


@pytest.mark.parametrize(
    "array",
    [
        MASK,
        MASK // 255,
        MASK // 255 * 17,  # the one class of a face parser
        MASK > 0,
        MASK / 255,
        MASK / 255 / 255,  # a mask of 0 and 1 that was scaled once more
        MASK.astype(np.uint16) * 257,
        MASK.astype(np.int64) // 255,
        MASK[..., None],
        np.dstack([MASK] * 3),
        np.dstack([MASK // 255] * 3),
        np.dstack([MASK] * 4),
        CUT_OUT,
        CUT_OUT // [1, 1, 1, 255],
    ],
)
def test_two_values_are_a_mask_whatever_they_are(array, tmp_path):
    np.testing.assert_array_equal(read_mask(array), MASK)
    if array.dtype.kind == "u" or array.dtype == bool and array.shape[2:] != (1,):
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
        np.testing.assert_array_equal(read_mask(saved(tmp_path, image)), MASK)


def test_files_of_palettes_are_masks_by_their_greys_or_by_two_numbers(tmp_path):
    indices = Image.fromarray(MASK // 255)
    for palette, stored in (([0, 0, 0, 128, 0, 0], indices), ([255] * 3 + [0] * 3, Image.fromarray(1 - MASK // 255))):
        stored = stored.copy()
        stored.putpalette(palette)
        np.testing.assert_array_equal(read_mask(saved(tmp_path, stored)), MASK)


@pytest.mark.parametrize("array", [SOFT, SOFT / 255, SOFT.astype(np.uint16) * 257, np.dstack([SOFT] * 3)])
def test_soft_masks_keep_their_shares(array):
    np.testing.assert_array_equal(read_mask(array), SOFT)


def test_a_smoothed_edge_of_few_levels_is_no_label():
    mask = np.array(Image.fromarray(astronaut.head_mask()).resize((256, 256), Image.Resampling.BOX))
    np.testing.assert_array_equal(read_mask(mask), mask)
    assert 3 <= len(np.unique(mask)) <= 8


def test_a_compressed_mask_is_nearly_itself(tmp_path):
    mask = read_mask(saved(tmp_path, astronaut.head_mask(), "mask.jpg"))
    assert np.abs(mask.astype(int) - astronaut.head_mask()).mean() < 1


LABELS = np.repeat(np.arange(64, dtype=np.uint8)[None] % 19, 8, axis=0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LABELS, "got levels from 0 to 18, as of labels"),
        (LABELS * 14, "got levels from 0 to 252, as of labels"),  # drawn in greys
        (np.dstack([LABELS * 14] * 3), "got levels from 0 to 252, as of labels"),
        (LABELS.astype(np.int32), "got levels from 0 to 18, as of labels"),
        (MASK // 255 + 1, "got levels from 1 to 2, as of labels"),
        (SOFT / 255 - 0.5, "got levels from -0.5 to 0.5"),
        (MASK * np.nan, "got levels from nan to nan"),
        (MASK * 0, "expected a face mask with a face, got zeros only"),
        (MASK * 0 + 255, "black outside the head, got at least 255 of 255 everywhere"),
        (MASK > -1, "black outside the head"),
        (np.dstack([MASK, SOFT, MASK]), "expected a face mask of black and white, got colours"),
        (np.dstack([SOFT, SOFT, SOFT, MASK]), "got it transparent besides"),
    ],
)
def test_masks_that_can_mean_several_things_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_mask(array)
