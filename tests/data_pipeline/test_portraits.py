"""The embedded world: the same for everybody, split without overlap, and as its captions, masks and landmarks say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import portraits
from data_pipeline.tokenizer import portraits_tokenizer, tokenize

NUM = 64


@pytest.fixture(scope="module")
def wild():
    return portraits.draw(portraits.person_ids("train", NUM), np.zeros(NUM, np.int32), "wild")


@pytest.fixture(scope="module")
def aligned():
    return portraits.draw(portraits.person_ids("train", NUM), np.zeros(NUM, np.int32), "aligned")


def test_a_picture_depends_on_its_person_and_number_only(wild):
    people = portraits.person_ids("train", NUM)[::-1][:5]
    again = portraits.draw(people, np.zeros(5, np.int32), "wild")
    np.testing.assert_array_equal(again.pixels, wild.pixels[::-1][:5])
    other = portraits.draw(people, np.ones(5, np.int32), "wild")
    assert (np.abs(other.pixels - again.pixels).mean((1, 2, 3)) > 0.02).all()


def test_pictures_are_in_range_and_of_one_size(wild, aligned):
    for picture in (wild, aligned):
        assert picture.pixels.shape == (NUM, 64, 64, 3)
        for array in (picture.pixels, picture.head_mask):
            assert array.min() >= 0.0 and array.max() <= 1.0
    assert (wild.pixels.std((1, 2, 3)) > 0.05).all()


def test_splits_share_no_person():
    ids = [set(portraits.person_ids(split, 1000)) for split in portraits.SPLIT_STARTS]
    assert len(set.union(*ids)) == sum(map(len, ids))
    with pytest.raises(ValueError, match="at most 1000000 people"):
        portraits.person_ids("train", 2, start=999_999)
    with pytest.raises(ValueError, match="expected a split of"):
        portraits.person_ids("dev", 1)


def test_people_differ_in_every_identity_parameter():
    values = np.asarray(jax.vmap(portraits.identity_parameters)(jnp.arange(2000)))
    assert values.shape == (2000, portraits.NUM_IDENTITY_PARAMETERS)
    assert (values.std(0) > 0.25).all()
    assert np.abs(np.corrcoef(values.T) - np.eye(portraits.NUM_IDENTITY_PARAMETERS)).max() < 0.1


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
    people, numbers = portraits.person_ids("train", 2), np.zeros(2, np.int32)
    identity = np.full((2, portraits.NUM_IDENTITY_PARAMETERS), 0.4, np.float32)
    same = portraits.draw_identity(identity, people[:1].repeat(2), numbers, "aligned").pixels
    np.testing.assert_array_equal(same[0], same[1])
    for index in range(portraits.NUM_IDENTITY_PARAMETERS):
        changed = identity.copy()
        changed[1, index] = 0.95
        pair = portraits.draw_identity(changed, people[:1].repeat(2), numbers, "aligned").pixels
        assert np.abs(pair[0] - pair[1]).max() > 0.03, f"identity parameter {index} is invisible"


def test_training_pictures_never_show_a_held_out_scene(wild):
    assert not portraits.is_held_out_scene(wild.scene).any()
    scenes = portraits.held_out_scenes(24)
    assert portraits.is_held_out_scene(scenes).all()
    assert len({tuple(scene) for scene in scenes}) == 24
    with pytest.raises(ValueError, match="at most"):
        portraits.held_out_scenes(1000)


def test_the_shirt_has_the_colour_of_the_caption(wild):
    """Read from the pixels: the lowest row, below the head, between the shoulders."""
    x = np.clip(np.rint(wild.landmarks[:, 2, 0]).astype(int), 8, 55)
    shirt = np.stack([wild.pixels[i, -3:, x[i] - 3 : x[i] + 4].reshape(-1, 3).mean(0) for i in range(NUM)])
    direction = shirt / np.maximum(np.linalg.norm(shirt, axis=-1, keepdims=True), 1e-6)
    colours = np.array([portraits.COLOURS.index(name) for name in ("red", "green", "blue")])
    for index, channel in zip(colours, range(3), strict=True):
        chosen = direction[wild.scene[:, 2] == index]
        assert len(chosen) and (chosen.argmax(-1) == channel).all()


def test_captions_say_the_scene_in_words_that_are_one_token_each():
    words = set(portraits.caption_words())
    scene = [portraits.COLOURS.index("green"), portraits.PATTERNS.index("dotted"), portraits.COLOURS.index("black")]
    for template in range(len(portraits.CAPTION_TEMPLATES)):
        text = portraits.caption(scene, template)
        assert {"green", "dotted", "black"} <= set(text.split()) <= words
        ids = tokenize(portraits_tokenizer(), [text])[0]
        start, end = ids[0], ids[-1]
        assert start != end and list(ids).index(end) == len(text.split()) + 1
