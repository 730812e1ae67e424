"""Image projections of IP-Adapter files: diffusers computes our mapper's tokens with them, and nothing is lost on the way."""

import dataclasses
import functools

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from pidiff_jax.convert.image_projection import from_image_projection, image_embeds, to_image_projection
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes
from pidiff_jax.paths import flatten, unflatten
from tests.models.tiny_unet import random_params

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

WIDTH = 24
FOUR = MapperSpec(groups=((0, 1), (1, 3), (3, 5), (5, 6)), wplus_dim=10, token_dim=WIDTH)
LINEAR = MapperSpec(groups=((0, 1), (1, 3), (3, 6)), wplus_dim=10, token_dim=WIDTH, tokens_per_group=3)
MLP = dataclasses.replace(LINEAR, kind="mlp", hidden_width=11)
FORMS = {
    "linear, four tokens": (FOUR, False),
    "linear, four tokens, sink": (FOUR, True),
    "linear": (LINEAR, False),
    "linear, sink": (LINEAR, True),
    "mlp": (MLP, False),
    "mlp, sink": (MLP, True),
    "mlp, wide codes": (dataclasses.replace(MLP, tokens_per_group=1, hidden_width=3), True),
}
each_form = pytest.mark.parametrize(("spec", "sink"), FORMS.values(), ids=FORMS)


def mapper(spec, sink, seed=3):
    """Random parameters; the LayerNorm has a bias where that can be."""
    params = random_params(nn.meta.unbox(mapper_shapes(IdentityMapper(spec))), seed)
    if sink:
        params["norm"]["bias"] = np.zeros_like(params["norm"]["bias"])
    return params


def codes(scale=1.0):
    return (scale * np.random.default_rng(5).standard_normal((2, 6, 10))).astype(np.float32)


@functools.cache
def unet():
    """One whose only use is to read image projections."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
        cross_attention_dim=WIDTH, attention_head_dim=2, layers_per_block=1,
    )  # fmt: skip


def diffusers_tokens(tensors, embeds, dtype=torch.float32):
    """Stock diffusers' tokens, and the class that makes them."""
    names = {name.removeprefix("image_proj."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    projection = unet()._convert_ip_adapter_image_proj_to_diffusers(names, low_cpu_mem_usage=False).to(dtype)
    with torch.no_grad():
        tokens = projection(torch.from_numpy(embeds[:, 0]).to(dtype))
    return tokens.float().numpy(), type(projection).__name__


@each_form
def test_diffusers_makes_the_mappers_tokens_and_zeros_for_the_sink(spec, sink):
    params, wplus = mapper(spec, sink), codes()
    embeds = image_embeds(wplus, spec, sink)
    tokens, name = diffusers_tokens(to_image_projection(params, spec, sink), embeds)
    assert name == ("ImageProjection" if spec is FOUR and not sink else "IPAdapterFullImageProjection")
    expected = IdentityMapper(spec).apply({"params": params}, jnp.asarray(wplus))
    np.testing.assert_allclose(tokens[:, : spec.num_tokens], expected, rtol=0, atol=1e-5)
    assert tokens.shape[1] == spec.num_tokens + sink and not tokens[:, spec.num_tokens :].any()


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nobody_is_zeros_and_exact_in_any_precision(spec, sink, dtype):
    params, nobody = mapper(spec, sink), np.zeros((1, 6, 10), np.float32)
    embeds = image_embeds(np.concatenate([nobody, codes()]), spec, sink)
    assert embeds[1:].any() and not embeds[0].any()
    tokens, _ = diffusers_tokens(to_image_projection(params, spec, sink), embeds[:1], dtype)
    bias = params["norm"]["bias"].astype(np.float32 if dtype == torch.float32 else np.float16)
    np.testing.assert_array_equal(tokens, np.broadcast_to(bias, tokens.shape))
    ours = IdentityMapper(spec).apply({"params": params}, jnp.asarray(nobody))
    np.testing.assert_allclose(ours, tokens[:, : spec.num_tokens], rtol=0, atol=1e-3)


@each_form
def test_codes_far_from_usual_are_as_exact(spec, sink):
    params, wplus = mapper(spec, sink), codes(scale=30.0)
    tokens, _ = diffusers_tokens(to_image_projection(params, spec, sink), image_embeds(wplus, spec, sink))
    expected = IdentityMapper(spec).apply({"params": params}, jnp.asarray(wplus))
    np.testing.assert_allclose(tokens[:, : spec.num_tokens], expected, rtol=0, atol=1e-5)


@each_form
def test_half_precision_loses_no_more_than_its_rounding(spec, sink):
    params, wplus = mapper(spec, sink), codes()
    tensors, embeds = to_image_projection(params, spec, sink), image_embeds(wplus, spec, sink)
    tokens, _ = diffusers_tokens(tensors, embeds, torch.float16)
    expected = IdentityMapper(spec).apply({"params": params}, jnp.asarray(wplus))
    np.testing.assert_allclose(tokens[:, : spec.num_tokens], expected, rtol=0, atol=2e-2)
    assert not tokens[:, spec.num_tokens :].any()


@each_form
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mappers_survive_both_directions_bit_for_bit(spec, sink, dtype):
    original = {path: leaf.astype(dtype) for path, leaf in flatten(mapper(spec, sink)).items()}
    written = to_image_projection(unflatten(original), spec, sink)
    read = flatten(from_image_projection(written, spec, sink))
    assert read.keys() == original.keys()
    for path, leaf in original.items():
        assert read[path].dtype == dtype
        np.testing.assert_array_equal(read[path], leaf, err_msg=path)
    again = to_image_projection(unflatten(read), spec, sink)
    assert again.keys() == written.keys() and all(np.array_equal(again[name], written[name]) for name in written)


@each_form
def test_a_file_in_half_precision_can_be_read(spec, sink):
    written = to_image_projection(mapper(spec, sink), spec, sink)
    rounded = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in written.items()}
    halved = {name: tensor.astype(np.float16) for name, tensor in written.items()}
    read = from_image_projection(halved, spec, sink)
    assert all(leaf.dtype == np.float16 for leaf in flatten(read).values())
    tokens, _ = diffusers_tokens(rounded, image_embeds(codes(), spec, sink))
    full = {path: leaf.astype(np.float32) for path, leaf in flatten(read).items()}
    expected = IdentityMapper(spec).apply({"params": unflatten(full)}, jnp.asarray(codes()))
    np.testing.assert_allclose(tokens[:, : spec.num_tokens], expected, rtol=0, atol=2e-3)


@each_form
def test_every_number_that_is_not_a_mappers_is_refused(spec, sink):
    written = to_image_projection(mapper(spec, sink), spec, sink)
    rng = np.random.default_rng(0)
    for name in written:
        if ".norm." in name or ".proj.3." in name:
            continue
        refused = 0
        for _ in range(10):
            changed = {**written, name: written[name].copy()}
            changed[name][tuple(rng.integers(0, written[name].shape))] += 0.5
            try:
                from_image_projection(changed, spec, sink)
            except ValueError as error:
                assert "got another image_proj.proj" in str(error)
                refused += 1
        assert refused >= 6, name  # the others are weights of the mapper


@each_form
def test_missing_unknown_and_misshapen_tensors_are_named(spec, sink):
    written = to_image_projection(mapper(spec, sink), spec, sink)
    first, second, *_ = written
    wrong = {**written, second: np.zeros(7, np.float32), "image_proj.latents": np.zeros(1, np.float32)}
    del wrong[first]
    with pytest.raises(ValueError) as error:
        from_image_projection(wrong, spec, sink)
    assert all(name in str(error.value) for name in (first, second, "image_proj.latents")) and "\n" not in str(
        error.value
    )
    params = mapper(spec, sink)
    del params["proj_0"]
    with pytest.raises(ValueError, match="missing 'proj_0/kernel'"):
        to_image_projection(params, spec, sink)


@pytest.mark.parametrize("spec", [FOUR, LINEAR, MLP], ids=["four", "linear", "mlp"])
def test_a_norm_with_a_bias_is_refused_beside_a_sink_in_both_directions(spec):
    params = mapper(spec, sink=True)
    written = to_image_projection(params, spec, sink=True)
    params["norm"]["bias"][3] = -0.25
    with pytest.raises(
        ValueError, match=r"no bias beside a sink, got up to 0.25; .*\('\^mapper/norm/bias\$', 'frozen'\)"
    ):
        to_image_projection(params, spec, sink=True)
    written["image_proj.proj.3.bias"] = params["norm"]["bias"]
    with pytest.raises(ValueError, match="no bias beside a sink"):
        from_image_projection(written, spec, sink=True)


def test_a_file_of_another_mapper_is_refused():
    written = to_image_projection(mapper(MLP, True), MLP, sink=True)
    regrouped = dataclasses.replace(MLP, groups=((0, 3), (3, 5), (5, 6)))
    for spec, sink in ((MLP, False), (regrouped, True), (dataclasses.replace(MLP, tokens_per_group=2), True)):
        with pytest.raises(ValueError, match="another image_proj.proj|expected shape"):
            from_image_projection(written, spec, sink)


def test_codes_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"W\+ codes of shape \(b, 6, 10\), got \(1, 6, 9\)"):
        image_embeds(np.zeros((1, 6, 9), np.float32), FOUR)
