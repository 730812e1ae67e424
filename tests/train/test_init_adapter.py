"""`config.init.adapter`: a training starts from an adapter's file of any format; another model's is refused by the key."""

import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax.convert.adapter import to_ip_adapter, to_wplus_adapter
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.unet import split_identity
from pidiff_jax.export.export import export_run
from pidiff_jax.paths import flatten
from pidiff_jax.runs.build import build_experiment
from pidiff_jax.runs.saved_run import open_run
from pidiff_jax.worlds import open_world
from tests.export.tiny_run import make_run, tiny_config
from tests.launch.experiments import get_config
from tests.models.tiny_unet import random_params

WRITERS = {"ip_adapter": to_ip_adapter, "wplus_adapter": to_wplus_adapter, "ours": lambda params, *_: flatten(params)}


def adapter_config(kind: str, path=None):
    config = get_config("quickstart")
    config.identity.variant = "residual" if kind == "wplus_adapter" else "decoupled"
    config.identity.sink = False
    config.parameter_rules = config.parameter_rules[1:]  # the norm's bias is trained
    config.mapper.kind, config.mapper.hidden_width, config.mapper.tokens_per_group = "linear", None, 1
    config.init.adapter = None if path is None else str(path)
    return config


def experiment_of(config):
    return build_experiment(config, open_world(config))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_training_starts_from_an_adapter_of_any_format(kind, tmp_path):
    plain = experiment_of(adapter_config(kind))
    shapes = {name: nn.meta.unbox(plain.shapes[name]) for name in ("unet", "mapper")}
    expected = random_params({"unet": split_identity(shapes["unet"])[1], "mapper": shapes["mapper"]})
    unet, mapper = plain.components.unet.spec, plain.components.identity_mapper.spec
    path = tmp_path / "adapter.safetensors"
    write_safetensors(path, WRITERS[kind](expected, unet, mapper))
    weights = experiment_of(adapter_config(kind, path)).load()
    base, branch = split_identity(weights.params["unet"])
    found, wanted = flatten({"unet": branch, "mapper": weights.params["mapper"]}), flatten(expected)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], array) for name, array in wanted.items())
    untouched = flatten(split_identity(plain.load().params["unet"])[0])
    assert all(np.array_equal(flatten(base)[name], array) for name, array in untouched.items())
    if kind != "ours":
        other = "wplus_adapter" if kind == "ip_adapter" else "ip_adapter"
        variant = adapter_config(kind).identity.variant
        with pytest.raises(ValueError, match=f"config.init.adapter: .*set config.identity.variant={variant}"):
            experiment_of(adapter_config(other, path))


def test_a_training_starts_from_the_file_of_a_run_that_froze_its_norms_bias(tmp_path):
    export_run(make_run(tmp_path / "run", "linear, sink"), tmp_path / "out", "safetensors", check=False)
    saved = open_run(tmp_path / "run").params
    config = tiny_config("linear, sink")
    config.init.adapter = str(tmp_path / "out/adapter.safetensors")
    found = experiment_of(config).load().params
    for part in ("mapper", "unet"):
        for path, array in flatten(found[part]).items():
            np.testing.assert_array_equal(array, flatten(saved[part])[path], err_msg=path)


def test_frozen_parts_of_a_file_must_be_as_they_are_without_it(tmp_path):
    """What is saved is what was trained: whoever opens the run has no other place to find them."""
    config = adapter_config("ours", tmp_path / "adapter.safetensors")
    plain, plain_rules = experiment_of(adapter_config("ours")), config.parameter_rules
    shapes = {name: nn.meta.unbox(plain.shapes[name]) for name in ("unet", "mapper")}
    params = random_params({"unet": split_identity(shapes["unet"])[1], "mapper": shapes["mapper"]})
    for bias in (1.0, 0.0):
        params["mapper"]["norm"]["bias"] = np.full_like(params["mapper"]["norm"]["bias"], bias)
        (tmp_path / "adapter.safetensors").unlink(missing_ok=True)
        write_safetensors(tmp_path / "adapter.safetensors", flatten(params))
        config.parameter_rules = (("^mapper/norm/bias$", "frozen"), *plain_rules)
        if bias:
            with pytest.raises(
                ValueError,
                match="config.init.adapter: expected what .* freezes .* got .* for mapper/norm/bias; train that",
            ):
                experiment_of(config).load()
            config.parameter_rules = plain_rules
        np.testing.assert_array_equal(experiment_of(config).load().params["mapper"]["norm"]["bias"], bias)


def test_what_is_no_adapter_for_this_model_is_refused_by_the_key(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.init.adapter: expected a model at .*gone"):
        experiment_of(adapter_config("ours", tmp_path / "gone.safetensors"))
    path = tmp_path / "arcface.safetensors"
    write_safetensors(path, {name: np.ones(3) for name in ("input_layer.0.weight", "output_layer.3.weight")})
    with pytest.raises(ValueError, match="config.init.adapter: expected an adapter's file .*got an ArcFace recogniser"):
        experiment_of(adapter_config("ours", path))
    diverged = {"unet/a/attn2/to_k_id/kernel": np.ones(2), "mapper/norm/scale": np.array(np.nan)}
    write_safetensors(tmp_path / "nan.safetensors", diverged)
    with pytest.raises(
        ValueError, match="config.init.adapter: expected finite numbers in 'mapper/norm/scale' of .*, got NaN"
    ):
        experiment_of(adapter_config("ours", tmp_path / "nan.safetensors")).load()
    small = tmp_path / "small.safetensors"
    write_safetensors(small, {"unet/a/attn2/to_k_id/kernel": np.ones((2, 2)), "mapper/norm/scale": np.ones(2)})
    with pytest.raises(ValueError, match="config.init.adapter: .*small.safetensors: the weights don't fit this model"):
        experiment_of(adapter_config("ours", small)).load()
