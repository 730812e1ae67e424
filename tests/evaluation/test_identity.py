"""The evaluation gives the known scores of a made-up world."""

import dataclasses

import numpy as np
import pytest

from pidiff_jax.evaluation.metrics_file import SCORES
from tests.evaluation import tiny_evaluation as tiny


@pytest.fixture(scope="module")
def evaluation():
    return tiny.evaluate()


def test_a_perfect_adapter_has_perfect_scores(evaluation):
    assert set(evaluation.scores) == set(SCORES)
    for name in ("identity_similarity", "retrieval_top1", "prompt_accuracy", "attention_in_face"):
        assert evaluation.scores[name].on.mean == pytest.approx(1.0, abs=1e-5), name
    assert evaluation.scores["background_change"].on.mean == pytest.approx(0.0, abs=1e-6)


def test_the_identity_off_is_the_baseline(evaluation):
    assert evaluation.scores["retrieval_top1"].off.mean == pytest.approx(0.1)
    assert evaluation.scores["identity_similarity"].off.mean < 0.8
    assert evaluation.scores["attention_in_face"].off.mean == pytest.approx(0.5)
    assert evaluation.details["identity_similarity/change"].low > 0
    assert evaluation.details["prompt_accuracy/wall/off"].mean == 1.0


def test_diversity_comes_from_the_noise(evaluation):
    assert evaluation.scores["diversity"].on.mean > 0
    silent = tiny.evaluate(lambda w, t, noise, scale: tiny.generate(w, t, np.zeros_like(noise), scale))
    assert silent.scores["diversity"].on.mean == 0


def test_on_and_off_share_noise_that_no_other_picture_has():
    seen = {"on": [], "off": []}

    def generate(wplus, text_ids, noise, identity_scale):
        seen["on" if identity_scale else "off"].append(np.asarray(noise))
        return tiny.generate(wplus, text_ids, noise, identity_scale)

    tiny.evaluate(generate)
    np.testing.assert_array_equal(seen["on"], seen["off"])
    num_jobs = len(np.unique(np.concatenate(seen["on"]).reshape(-1, 32), axis=0))
    own_prompt_in_grid = 3  # people 0, 1 and 3: their own prompt is one of the first two
    assert num_jobs == 10 + 3 * 1 + (4 * 2 - own_prompt_in_grid)


def test_the_batch_size_changes_nothing_but_speed(evaluation):
    other = tiny.evaluate(protocol=dataclasses.replace(tiny.PROTOCOL, batch_size=7))
    assert other.scores == evaluation.scores


def test_all_batches_have_one_shape():
    shapes = set()

    def generate(wplus, text_ids, noise, identity_scale):
        shapes.add((wplus.shape, text_ids.shape, noise.shape))
        return tiny.generate(wplus, text_ids, noise, identity_scale)

    tiny.evaluate(generate)
    assert len(shapes) == 1


def test_the_grid_shows_the_first_people_with_the_same_prompts(evaluation):
    grid = evaluation.grid
    assert grid.prompts == ("a red wall", "a striped wall")
    assert grid.with_identity.shape == (4, 2, 8, 8, 3)
    np.testing.assert_allclose(grid.with_identity[:, :, 0, 0, 0], np.tile(tiny.codes()[:4, None], (1, 2)))
    np.testing.assert_array_equal(grid.with_identity[..., -1, :], grid.without_identity[..., -1, :])
    np.testing.assert_allclose(grid.similarity_with, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_seeds": 1}, "at least 2 seeds"),
        ({"num_grid_prompts": 4}, "at least 4 prompts"),
        ({"num_grid_people": 0}, "at least 1 person"),
        ({"identity_scale": float("nan")}, "a finite identity scale, got nan"),
    ],
)
def test_impossible_protocols_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny.evaluate(protocol=dataclasses.replace(tiny.PROTOCOL, **change))
