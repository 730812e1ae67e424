"""Both worlds keep the protocol, and opening one loads nothing of the other."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import common
from pidiff_jax.evaluation.subjects import HeldOut
from pidiff_jax.worlds import World, open_world
from pidiff_jax.worlds.portraits.weight_files import save_weights
from tests.launch.commands import call_script
from tests.launch.experiments import get_config

WORLDS = [("portraits", "quickstart"), ("photographs", "ffhq")]


@pytest.mark.parametrize(("experiment", "judged"), [("quickstart", True), ("ffhq", False)])
def test_a_config_opens_the_world_that_it_names(experiment, judged):
    world = open_world(get_config(experiment))
    assert isinstance(world, World)
    assert isinstance(world.held_out("test"), HeldOut) == judged


@pytest.mark.parametrize(("experiment", "other"), [("quickstart", "photographs"), ("ffhq", "portraits")])
def test_a_world_does_not_bring_the_other(experiment, other):
    script = f"""
import sys
from experiments import {experiment}
from pidiff_jax.worlds import open_world

open_world({experiment}.get_config())
assert not [name for name in sys.modules if name.startswith("pidiff_jax.worlds.{other}")]
"""
    result = call_script(script)
    assert result.returncode == 0, result.stderr


def test_a_config_of_another_world_is_refused_with_the_key_that_it_lacks():
    config = get_config("quickstart")
    config.world = "photographs"
    with pytest.raises(ValueError, match="a config for the world 'photographs', got one without a key: .*wplus_layers"):
        open_world(config)


@pytest.mark.parametrize("value", [None, 5, "text", [1]])
@pytest.mark.parametrize("name", ["base", "data", "evaluation", "groups", "mapper", "sampling"])
def test_a_value_where_keys_belong_is_refused_by_its_name(name, value):
    config = ConfigDict({**get_config("quickstart"), name: value})  # as a run's config.json may come
    with pytest.raises(ValueError, match=rf"expected config.{name} with keys of its own, got .*; correct it"):
        open_world(config)


@pytest.mark.parametrize("version", [None, 2, 4])
def test_a_config_of_another_version_of_the_world_is_refused_in_one_line(version):
    config = get_config("quickstart")
    del config["world_version"]
    if version:
        config.world_version = version
    with pytest.raises(
        ValueError, match=f"config.world_version=3, .*, got {version or 1}, whose .* train again"
    ) as error:
        open_world(config)
    assert "\n" not in str(error.value)


def test_configs_name_the_version_of_their_world():
    assert {common.WORLD_VERSIONS[name] - open_world(get_config(config)).version for name, config in WORLDS} == {0}


def test_people_that_are_trained_on_are_not_held_out():
    with pytest.raises(ValueError, match="expected the split 'validation' or 'test', got 'train'"):
        open_world(get_config("quickstart")).held_out("train")


def test_weights_that_are_not_there_are_named_before_anything_is_built():
    config = get_config("quickstart")
    config.base.path = "sd15"
    with pytest.raises(
        FileNotFoundError, match=r"expected embedded weights at sd15/base.safetensors.*experiments/ffhq.py"
    ):
        open_world(config).check()


def test_base_weights_of_another_model_are_refused_with_their_file(tmp_path):
    for name in ("base", "vae"):
        save_weights(tmp_path / f"{name}.safetensors", {"vae": {"kernel": np.zeros(2)}}, {})
    config = get_config("quickstart")
    config.base.path = str(tmp_path)
    with pytest.raises(
        ValueError, match=r"base\.safetensors: expected a source that fits the parameters.*missing"
    ) as error:
        open_world(config).base_model().load()
    assert "\n" not in str(error.value)
