"""Words about an identity's strength become numbers for tokens, steps and places."""

import re

import numpy as np
import pytest
from PIL import Image

from pidiff_jax.models.identity_mapper import MapperSpec
from pidiff_jax.pipeline.identity_scale import identity_schedule, picture_mask, region_masks

SPEC = MapperSpec(groups=((0, 4), (4, 10)), wplus_dim=8, token_dim=20, tokens_per_group=2)


def test_identity_start_leaves_the_first_half_of_the_steps_without_identity():
    np.testing.assert_array_equal(identity_schedule(0.8, 6, SPEC, start=0.5).any(1), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(identity_schedule(0.8, 6, SPEC, end=0.5).any(1), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(identity_schedule(0.8, 6, SPEC, start=0.5, end=0.5), np.zeros((6, 4)))
    np.testing.assert_array_equal(identity_schedule(0.8, 6, SPEC), np.full((6, 4), np.float32(0.8)))


def test_a_token_has_the_mean_of_its_layers():
    layers = [float(i) for i in range(10)]
    np.testing.assert_allclose(identity_schedule(layers, 1, SPEC), [[1.5, 1.5, 6.5, 6.5]])
    levels = identity_schedule({"coarse": 0.0, "fine": 0.5}, 1, SPEC)
    np.testing.assert_allclose(levels, [[0, 0, 5 / 6, 5 / 6]], rtol=1e-6)


def test_factors_over_time_are_linear_in_between():
    np.testing.assert_allclose(identity_schedule(2.0, 5, SPEC, over_time=(0.0, 1.0))[:, 0], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(identity_schedule(1.0, 5, SPEC, over_time=(0.0, 1.0, 0.0))[:, 0], [0, 0.5, 1, 0.5, 0])
    np.testing.assert_allclose(identity_schedule(1.0, 4, SPEC, start=0.5, over_time=(3.0,))[:, 0], [0, 0, 3, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": float("nan")}, "expected an identity_scale to be a finite number, got nan"),
        ({"scale": {"fine": float("inf")}}, "expected an identity_scale to be a finite number, got inf"),
        ({"scale": {"rough": 1.0}}, "expected levels of coarse, middle, fine, all, .* got 'rough'"),
        ({"scale": [1.0, 2.0]}, "one for each of 10 layers"),
        ({"start": -0.1}, r"expected identity_start in \[0.0, 1.0\], got -0.1"),
        ({"end": 1.5}, r"expected identity_end in \[0.0, 1.0\], got 1.5"),
        ({"start": 0.6, "end": 0.5}, "expected identity_start up to identity_end=0.5, got 0.6"),
        ({"over_time": ()}, "expected identity_over_time as a list of finite numbers"),
        ({"over_time": (1.0, float("nan"))}, "expected identity_over_time as a list of finite numbers"),
    ],
)
def test_a_strength_that_nobody_can_mean_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        identity_schedule(**{"scale": 1.0, "num_steps": 4, "spec": SPEC, **change})
    assert "\n" not in str(error.value)


def test_boxes_cover_their_share_of_each_latent():
    masks = region_masks([(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.125, 0.25)], (16, 32), (4, 8))
    left = np.zeros((4, 8), np.float32)
    left[:, :4] = 1
    np.testing.assert_array_equal(masks[:2], (left, 1 - left))
    assert masks[2].sum() == 1 and masks[2, 0, 0] == 1
    np.testing.assert_array_equal(region_masks([(0.0, 0.0, 1 / 16, 1.0)], (16, 32), (4, 8))[0, :, 0], [0.5] * 4)


def test_a_mask_of_any_form_and_size_is_a_region(tmp_path):
    levels = np.zeros((8, 16), np.uint8)
    levels[:, :8] = 255
    Image.fromarray(levels).save(tmp_path / "left.png")
    for mask in (levels, levels > 0, Image.fromarray(levels), tmp_path / "left.png", str(tmp_path / "left.png")):
        (found,) = region_masks([mask], (16, 32), (4, 8))
        np.testing.assert_array_equal(found, np.repeat([[1, 1, 1, 1, 0, 0, 0, 0]], 4, 0))
        np.testing.assert_array_equal(picture_mask(mask, (16, 32))[:, [15, 16]], [[1, 0]] * 16)


def test_a_masks_file_and_its_picture_in_memory_mean_what_is_seen(tmp_path, monkeypatch):
    white_left = Image.fromarray(np.repeat([[0] * 8 + [1] * 8], 8, 0).astype(np.uint8))
    white_left.putpalette([255] * 3 + [0] * 3)
    lying = Image.fromarray(np.repeat([[0], [255]], 8, 0).repeat(8, 1).astype(np.uint8))  # as a phone stores it
    lying.getexif()[0x0112] = 6  # to be turned clockwise: what is below is left
    white = Image.new("P", (16, 8))
    white.putpalette([255] * 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    for mask, expected in ((white_left, [1, 0]), (lying, [1, 0]), (white, [1, 1])):
        mask.save(tmp_path / "mask.png", exif=mask.getexif())
        for form in (mask, tmp_path / "mask.png", "~/mask.png"):
            np.testing.assert_array_equal(picture_mask(form, (16, 32))[:, [15, 16]], [expected] * 16)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0.5, 0.0, 0.5, 1.0), "expected region 2 as a box"),
        ((0.0, 0.0, 0.5), "expected region 2 as a box"),
        ((0.0, 0.0, 0.5, 1.5), "expected region 2 as a box"),
        ((0.0, 0.0, float("nan"), 1.0), "expected region 2 as a box"),
        (np.eye(8, dtype=bool), "expected region 2 with the proportions of the picture, 32 x 16, got 8 x 8"),
        (np.zeros((16, 32), np.uint8), "region 2: expected a mask with something white, got zeros only"),
        (5, "region 2: expected an array (height, width, channels), got shape ()"),
        ("gs://bucket/x.png", "expected a path on this machine for region 2, got 'gs://bucket/x.png'"),
    ],
)
def test_a_region_that_is_none_is_named_in_one_line(region, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        region_masks([(0.0, 0.0, 0.5, 1.0), region], (16, 32), (4, 8))
    assert "\n" not in str(error.value)
