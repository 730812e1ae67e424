"""What could only fail at a run's end is refused before it begins."""

import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from pidiff_jax.runs.build import build_experiment, evaluation_settings
from pidiff_jax.worlds import open_world
from tests.launch.experiments import get_config


def settings_of(config, components):
    return evaluation_settings(config, open_world(config), components)


@pytest.fixture(scope="module")
def components():
    config = get_config("quickstart")
    return build_experiment(config, open_world(config)).components  # loads and renders nothing


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.split", "train", "the split 'validation' or 'test', got 'train'"),
        ("evaluation.num_people", 0, "at least 1 person, got 0"),
        ("evaluation.num_prompts", 0, "expected 1 to 24 held-out scenes of a split, got 0"),
        ("evaluation.num_prompts", 2, "at least 3, which samples.png shows, got 2"),
        ("evaluation.num_prompts", 25, "expected 1 to 24 held-out scenes of a split, got 25"),
        ("sampling.num_steps", 0, "1 to 1000 sampling steps, got 0"),
        ("sampling.num_steps", 1001, "1 to 1000 sampling steps, got 1001"),
        ("sampling.guidance_scale", float("nan"), "a finite number, got nan"),
        ("sampling.identity_scale", float("inf"), "a finite number, got inf"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(components, key, value, message):
    config = get_config("quickstart")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"config.{key}: .*{message}"):
        settings_of(config, components)


@pytest.mark.parametrize("name", ["num_steps", "guidance_scale", "identity_scale", "identity_start"])
def test_no_number_is_refused_by_its_name(components, name):
    config = get_config("quickstart")
    config.sampling = ConfigDict({**config.sampling, name: None})  # as a run's config.json may come
    with pytest.raises(ValueError, match=rf"config.sampling.{name}: expected it to be a .* number, got None"):
        settings_of(config, components)
    del config.sampling[name]
    with pytest.raises(ValueError, match=rf"expected a config with config.sampling.{name}, got one without it"):
        settings_of(config, components)


@pytest.mark.parametrize("name", ["sampling", "evaluation"])
def test_a_config_that_does_not_say_how_it_is_scored_is_refused_by_the_key(components, name):
    config = get_config("quickstart")
    del config[name]
    with pytest.raises(ValueError, match=rf"expected a config with config.{name}, got one without it; add it"):
        settings_of(config, components)


@pytest.mark.parametrize("name", ["num_people", "num_prompts"])
def test_a_missing_number_of_an_evaluation_is_named(components, name):
    config = get_config("quickstart")
    del config.evaluation[name]
    with pytest.raises(ValueError, match=rf"expected a config with config.evaluation.{name}, got one without it"):
        settings_of(config, components)


def test_photographs_need_somebody_to_preview(components):
    config = get_config("ffhq")
    config.evaluation.num_preview_people = 0
    with pytest.raises(ValueError, match="config.evaluation.num_preview_people: expected at least 1, got 0"):
        settings_of(config, components)
    del config.evaluation.num_preview_people
    with pytest.raises(
        ValueError, match="expected a config with config.evaluation.num_preview_people, got one without"
    ):
        settings_of(config, components)


def test_nobody_judges_photographs(components):
    settings = settings_of(get_config("ffhq"), components)
    assert settings.scoring is None and settings.facts() == {}


def test_what_was_scored_is_told_with_the_numbers_that_were_drawn(components):
    config = get_config("quickstart")
    config.evaluation.num_people, config.evaluation.num_prompts, config.sampling.num_steps = 5, 4, 3
    config.evaluation.split = "validation"
    assert settings_of(config, components).facts() == {
        "split": "validation", "num_people": 5, "num_prompts": 4, "num_diversity_people": 5, "num_seeds": 4,
        "num_references": 1, "identity_scale": 1.0, "identity_start": 0.1, "guidance_scale": 2.5, "sampling_steps": 3,
        "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", [None, "landscapes"])
def test_a_config_without_a_world_is_refused(name):
    config = get_config("quickstart")
    config.world = name or ""
    with pytest.raises(ValueError, match=r"expected config.world of \('photographs', 'portraits'\), got"):
        open_world(config)


def test_a_config_without_a_mapper_is_refused_by_the_key():
    config = get_config("quickstart")
    del config["mapper"]
    with pytest.raises(ValueError, match="a config for the config.task 'identity', got one without a key: .*'mapper'"):
        build_experiment(config, open_world(config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cubic"}, "config.mapper: expected kind 'linear' or 'mlp', got 'cubic'"),
        ({"kind": "mlp"}, "config.mapper: expected hidden_width of at least 1 of the kind 'mlp', got None"),
        ({"hidden_width": 8}, "config.mapper: expected hidden_width None of the kind 'linear', got 8"),
        ({"kind": "mlp", "hidden_width": 0}, "expected config.mapper.hidden_width of at least 1, got 0"),
        ({"kind": "mlp", "hidden_width": 10**6}, "expected config.mapper.hidden_width of at most 65536, got 1000000"),
        ({"groups": ((0, 4),)}, r"expected config.mapper.groups to cover the W\+ layers 0..9 in order, got"),
        ({"groups": None}, "expected config.mapper.groups as pairs of a first and a last layer"),
        ({"groups": (4, 8)}, "expected config.mapper.groups as pairs of a first and a last layer"),
    ],
)
def test_a_mapper_that_cannot_be_is_refused_by_its_key(values, message):
    config = get_config("quickstart")
    config.mapper.update(values)
    with pytest.raises(ValueError, match=message):
        build_experiment(config, open_world(config))


def test_a_hidden_layer_for_each_group_is_built_from_the_config():
    config = get_config("quickstart")
    config.mapper.update({"kind": "mlp", "hidden_width": 32})
    mapper = nn.meta.unbox(build_experiment(config, open_world(config)).shapes["mapper"])
    assert mapper["hidden_9"]["kernel"].shape == (64, 32) and mapper["proj_9"]["kernel"].shape == (32, 4 * 64)


def test_a_run_from_before_the_huber_loss_has_the_squared_one():
    config = get_config("quickstart")
    assert build_experiment(config, open_world(config)).losses.__self__.huber_c == 0.01
    del config["huber_c"]
    assert build_experiment(config, open_world(config)).losses.__self__.huber_c is None


def test_a_task_that_no_world_has_is_refused():
    config = get_config("quickstart")
    config.task = "upscaling"
    with pytest.raises(ValueError, match="expected config.task of .*'identity'.*'wplus'.*got 'upscaling'"):
        build_experiment(config, open_world(config))


def test_the_number_of_photographs_behind_a_code_stands_in_the_scores(components):
    config = get_config("quickstart")
    for count in (1, 3):
        settings = evaluation_settings(config, open_world(config), components, num_references=count)
        assert settings.facts()["num_references"] == settings.num_references == count
