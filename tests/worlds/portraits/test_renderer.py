"""The embedded world: the same for everybody, split without overlap, and as its captions, masks and landmarks say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.worlds.portraits import renderer
from pidiff_jax.worlds.portraits.painter import Face
from pidiff_jax.worlds.portraits.tokenizer import caption_ids

NUM = 64


@pytest.fixture(scope="module")
def wild():
    return renderer.draw(renderer.person_ids("train", NUM), np.zeros(NUM, np.int32), "wild")


@pytest.fixture(scope="module")
def aligned():
    return renderer.draw(renderer.person_ids("train", NUM), np.zeros(NUM, np.int32), "aligned")


def test_a_picture_depends_on_its_person_and_number_only(wild):
    people = renderer.person_ids("train", NUM)[::-1][:5]
    again = renderer.draw(people, np.zeros(5, np.int32), "wild")
    np.testing.assert_array_equal(again.pixels, wild.pixels[::-1][:5])
    other = renderer.draw(people, np.ones(5, np.int32), "wild")
    assert (np.abs(other.pixels - again.pixels).mean((1, 2, 3)) > 0.02).all()


def test_pictures_are_in_range_and_of_one_size(wild, aligned):
    for picture in (wild, aligned):
        assert picture.pixels.shape == (NUM, 64, 64, 3)
        for array in (picture.pixels, picture.head_mask):
            assert array.min() >= 0.0 and array.max() <= 1.0
    assert (wild.pixels.std((1, 2, 3)) > 0.05).all()


def test_splits_share_no_person():
    ids = [set(renderer.person_ids(split, 1000)) for split in renderer.SPLIT_STARTS]
    assert len(set.union(*ids)) == sum(map(len, ids))
    with pytest.raises(ValueError, match="at most 1000000 people"):
        renderer.person_ids("train", 2, start=999_999)
    with pytest.raises(ValueError, match="expected a split of"):
        renderer.person_ids("dev", 1)
    with pytest.raises(ValueError, match="at least 1 person, got 0"):
        renderer.person_ids("test", 0)


def test_the_neck_is_outside_the_head_mask_also_below_long_hair():
    """In units of the head, eyes are at -0.04, the mouth at 0.55 and the chin at 1.0: the point at 1.25 is on the neck."""
    people = renderer.person_ids("train", 2 * NUM)
    identity = np.array(jax.vmap(renderer.identity_parameters)(people))
    identity[:, Face._fields.index("hair_length")] = 1.0
    identity[:, Face._fields.index("mouth_width")] = 0.0  # a smile hardly lifts its corners
    picture = renderer.draw_identity(identity, people, np.zeros(2 * NUM, np.int32), "wild")
    left_eye, right_eye, nose, left_mouth, right_mouth = picture.landmarks.transpose(1, 0, 2)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    x, y = np.rint(mouth + (mouth - eyes) * (0.7 / 0.59) - 0.5).astype(int).T
    slope = (right_eye - left_eye)[:, 1] / (right_eye - left_eye)[:, 0]
    frontal = np.abs(nose - eyes)[:, 0] < 1.0
    # The neck doesn't tilt or turn.
    upright = np.flatnonzero((np.abs(slope) < 0.08) & frontal & (y < renderer.RESOLUTION_PX))
    assert len(upright) > 10
    # A tilt or a turn takes the eyes and the mouth a little off the neck's axis.
    beside = x[upright, None] + np.arange(-4, 5)
    assert picture.head_mask[upright[:, None], y[upright, None], beside].min(1).max() < 0.05


def test_people_differ_in_every_identity_parameter():
    values = np.asarray(jax.vmap(renderer.identity_parameters)(jnp.arange(2000)))
    assert values.shape == (2000, renderer.NUM_IDENTITY_PARAMETERS)
    assert (values.std(0) > 0.25).all()
    assert np.abs(np.corrcoef(values.T) - np.eye(renderer.NUM_IDENTITY_PARAMETERS)).max() < 0.1


def test_the_mask_holds_the_landmarks_and_nothing_of_the_frame(wild, aligned):
    for picture in (wild, aligned):
        x, y = np.rint(picture.landmarks - 0.5).astype(int).transpose(2, 0, 1)
        inside = picture.head_mask[np.arange(NUM)[:, None], y, x]
        assert inside.min() > 0.95
    left_eye, right_eye, nose, left_mouth, right_mouth = wild.landmarks.transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all() and (left_mouth[:, 0] < right_mouth[:, 0]).all()
    share = wild.head_mask.mean((1, 2))
    assert 0.05 < share.min() and share.max() < 0.5
    assert (aligned.head_mask.mean((1, 2)) > 0.33).all()


def test_an_identity_keeps_its_skin_and_a_change_of_it_shows():
    """The first two rows are one identity; each of the others differs from it in one parameter."""
    identity = np.full((2 + renderer.NUM_IDENTITY_PARAMETERS, renderer.NUM_IDENTITY_PARAMETERS), 0.4, np.float32)
    np.fill_diagonal(identity[2:], 0.95)
    people = renderer.person_ids("train", 1).repeat(len(identity))
    same, again, *changed = renderer.draw_identity(identity, people, np.zeros_like(people), "aligned").pixels
    np.testing.assert_array_equal(same, again)
    for index, picture in enumerate(changed):
        assert np.abs(picture - same).max() > 0.03, f"identity parameter {index} is invisible"


def test_training_pictures_never_show_a_held_out_scene(wild):
    assert not renderer.is_held_out_scene(wild.scene).any()
    scenes = renderer.held_out_scenes(24)
    assert renderer.is_held_out_scene(scenes).all()
    assert len({tuple(scene) for scene in scenes}) == 24
    for wrong in (0, 25):
        with pytest.raises(ValueError, match=f"1 to 24 held-out scenes of a split, got {wrong}"):
            renderer.held_out_scenes(wrong)


def test_the_held_out_scenes_of_test_and_validation_differ():
    test, validation = ({tuple(s) for s in renderer.held_out_scenes(24, split)} for split in ("test", "validation"))
    assert len(test) == len(validation) == 24 and not test & validation
    with pytest.raises(ValueError, match="'test' or 'validation', got 'train'"):
        renderer.held_out_scenes(3, "train")


def test_the_held_out_scenes_of_test_stay_what_published_scores_were_measured_on():
    assert renderer.held_out_scenes(3).tolist() == [[0, 4, 0], [3, 0, 7], [0, 2, 4]]


def test_the_shirt_has_the_colour_of_the_caption(wild):
    """Read from the pixels: the lowest row, below the head, between the shoulders."""
    x = np.clip(np.rint(wild.landmarks[:, 2, 0]).astype(int), 8, 55)
    shirt = np.stack([wild.pixels[i, -3:, x[i] - 3 : x[i] + 4].reshape(-1, 3).mean(0) for i in range(NUM)])
    direction = shirt / np.maximum(np.linalg.norm(shirt, axis=-1, keepdims=True), 1e-6)
    colours = np.array([renderer.COLOURS.index(name) for name in ("red", "green", "blue")])
    for index, channel in zip(colours, range(3), strict=True):
        chosen = direction[wild.scene[:, 2] == index]
        assert len(chosen) and (chosen.argmax(-1) == channel).all()


def test_captions_say_the_scene_in_words_that_are_one_token_each():
    words = set(renderer.caption_words())
    scene = [renderer.COLOURS.index("green"), renderer.PATTERNS.index("dotted"), renderer.COLOURS.index("black")]
    for template in range(len(renderer.CAPTION_TEMPLATES)):
        text = renderer.caption(scene, template)
        assert {"green", "dotted", "black"} <= set(text.split()) <= words
        ids = caption_ids([text])[0]
        start, end = ids[0], ids[-1]
        assert start != end and list(ids).index(end) == len(text.split()) + 1
