"""An examiner that is made before a training refuses what could only fail at the training's end."""

import runpy
from pathlib import Path

import pytest

from launch.identity_runs import IdentityExaminer
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.build import build_experiment

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.py"


def quickstart():
    return runpy.run_path(str(QUICKSTART))["get_config"]()


@pytest.fixture(scope="module")
def experiment():
    return build_experiment(quickstart())  # renders nothing


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.num_people", 0, "at least 1 person, got 0"),
        ("evaluation.num_prompts", 0, "expected 1 to 24 held-out scenes of a split, got 0"),
        ("evaluation.num_prompts", 2, "at least 3, which samples.png shows, got 2"),
        ("evaluation.num_prompts", 25, "expected 1 to 24 held-out scenes of a split, got 25"),
        ("sampling.num_steps", 0, "1 to 1000 sampling steps, got 0"),
        ("sampling.num_steps", 1001, "1 to 1000 sampling steps, got 1001"),
        ("sampling.guidance_scale", float("nan"), "a finite number, got nan"),
        ("sampling.identity_scale", float("inf"), "a finite identity scale, got inf"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(experiment, tmp_path, key, value, message):
    config = quickstart()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"config.{key}: .*{message}"):
        IdentityExaminer(config, tmp_path / "run", experiment, make_mesh(dict(config.mesh)))
    assert not list(tmp_path.iterdir())


def test_photographs_need_somebody_to_preview(experiment, tmp_path):
    config = quickstart()
    config.base.path = "a folder"
    config.evaluation = {"num_preview_people": 0}
    with pytest.raises(ValueError, match="config.evaluation.num_preview_people: expected at least 1, got 0"):
        IdentityExaminer(config, tmp_path / "run", experiment, make_mesh(dict(config.mesh)))


def test_what_was_scored_is_told_with_the_numbers_that_were_drawn(experiment, tmp_path):
    config = quickstart()
    config.evaluation.num_people, config.evaluation.num_prompts, config.sampling.num_steps = 5, 4, 3
    examiner = IdentityExaminer(config, tmp_path, experiment, make_mesh(dict(config.mesh)), split="validation")
    assert examiner.protocol_facts() == {
        "split": "validation", "num_people": 5, "num_prompts": 4, "num_diversity_people": 5, "num_seeds": 4,
        "identity_scale": 1.0, "guidance_scale": 2.5, "sampling_steps": 3, "seed": 0,
    }  # fmt: skip
