"""A person's photograph gives the person's code; pictures that can't be one are refused."""

import functools

import numpy as np
import pytest
from PIL import Image

from pidiff_jax.worlds.portraits.faces import PortraitFaces
from pidiff_jax.worlds.portraits.renderer import draw, person_ids, poses

COUNT = 16


@functools.cache
def faces():
    return PortraitFaces()


@functools.cache
def drawn(view, picture_id):
    numbers = np.full(COUNT, picture_id, np.int32)
    pixels = draw(person_ids("test", COUNT), numbers, view, chunk=COUNT).pixels
    return np.rint(np.asarray(pixels) * 255).astype(np.uint8)


@functools.cache
def codes(view, picture_id):
    return np.stack([faces().encode(each) for each in drawn(view, picture_id)]).reshape(COUNT, -1)


@pytest.mark.full
def test_a_wild_photograph_s_code_is_nearest_to_the_person_s_own_in_most_cases():
    distances = np.linalg.norm(codes("wild", 0)[:, None] - codes("aligned", 1)[None], axis=-1)
    assert (distances.argmin(1) == np.arange(COUNT)).sum() >= 12


def test_a_photograph_of_another_size_gives_nearly_the_same_code():
    (first, *_) = drawn("wild", 0)
    larger = np.asarray(Image.fromarray(first).resize((128, 128), Image.Resampling.BICUBIC))
    apart = np.linalg.norm(faces().encode(larger) - faces().encode(first))
    assert apart < 0.5 * np.linalg.norm(faces().encode(drawn("wild", 0)[1]) - faces().encode(first))


def test_the_mask_of_a_head_has_the_picture_s_size_and_lies_on_the_head():
    truth = draw(person_ids("test", COUNT), np.zeros(COUNT, np.int32), "wild", chunk=COUNT).head_mask[0] > 0.5
    found = faces().mask(drawn("wild", 0)[0])
    assert found.shape == truth.shape and found.min() >= 0 and found.max() <= 1
    inside = found > 0.5
    assert (truth & inside).sum() / truth.sum() > 0.97
    assert (truth & inside).sum() / inside.sum() > 0.65


def gradient():
    return np.repeat(np.linspace(40, 220, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)


def wall():
    pixels = np.full((64, 64, 3), (0, 0, 180), np.uint8)
    pixels[:, ::8, :2] = 255
    return pixels


def two_people():
    side_by_side = np.concatenate(list(drawn("wild", 0)[:2]), axis=1)
    return np.asarray(Image.fromarray(side_by_side).resize((64, 64), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wall, "expected a picture with a face, found none; choose another"),
        (two_people, "expected a picture of one person, found 2 faces; cut one out"),
        (lambda: drawn("wild", 0)[0][:48], "expected a square picture, .* got 64 x 48 pixels; cut one out"),
    ],
)
def test_a_picture_without_one_face_is_refused_in_one_line(make, message):
    for function in (faces().encode, faces().mask):
        with pytest.raises(ValueError, match=message) as error:
            function(make())
        assert "\n" not in str(error.value)


def test_a_gradient_has_no_face():
    for pixels in (gradient(), gradient().transpose(1, 0, 2)):
        with pytest.raises(
            ValueError, match="expected a picture (with a face, found none|of one person, found 2 faces)"
        ):
            faces().encode(pixels)


def test_poses_are_those_that_the_pictures_are_drawn_with():
    ids, numbers = person_ids("test", 3), np.arange(3, dtype=np.int32)
    wild, aligned = poses(ids, numbers, "wild"), poses(ids, numbers, "aligned")
    assert wild.centre.shape == (3, 2) and wild.smile.shape == (3,)
    assert (np.abs(aligned.yaw) <= 0.12).all() and (aligned.scale > wild.scale).all()
    np.testing.assert_array_equal(poses(ids[1:], numbers[1:], "wild").roll, wild.roll[1:])
    landmarks = np.asarray(draw(ids, numbers, "wild", chunk=3).landmarks)
    across = landmarks[:, 1] - landmarks[:, 0]
    np.testing.assert_allclose(np.arctan2(across[:, 1], across[:, 0]), wild.roll, atol=0.05)
