"""The shared layers give PyTorch's values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen as nn

from pidiff_jax.models import cpu_conv
from pidiff_jax.models.layers import Conv, GroupNorm, LayerNorm
from pidiff_jax.models.unet_blocks import GatedGelu
from tests.models.tiny_unet import random_params


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def channels_first(x):
    # Copied: PyTorch's own kernel for permuted memory is off by 4e-4 in a GroupNorm at mean 30.
    return x.permute(0, 3, 1, 2).contiguous()


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def torch_group_norm(x, scale, bias):
    return F.silu(channels_last(F.group_norm(channels_first(x), 4, scale, bias, 1e-5)))


def torch_layer_norm(x, scale, bias):
    return F.layer_norm(x, x.shape[-1:], scale, bias, 1e-5)


def torch_gated_gelu(x, kernel, bias):
    value, gate = (x @ kernel + bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def torch_conv(x, kernel, bias, padding=(1, 1, 1, 1), stride=1):
    x = F.pad(channels_first(x), padding)
    return channels_last(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride))


def assert_values_and_gradients_agree(module, x, reference):
    """Of the module and of `reference(x, *parameters)`, for a random weighting of the outputs; to 1e-5."""
    names = ("kernel", "bias") if isinstance(module, GatedGelu | Conv) else ("scale", "bias")
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x)))["params"]
    params = random_params(shapes)
    leaves = params["proj"] if isinstance(module, GatedGelu) else params
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, *(leaves[name] for name in names))]
    expected = reference(*tensors)
    # Weights of mean square 1/positions: the gradients of the parameters, which are sums over positions, are O(1).
    weights = random(*expected.shape, seed=9) / np.sqrt(np.prod(expected.shape[:-1])).astype(np.float32)
    gradients = torch.autograd.grad((expected * torch.tensor(weights)).sum(), tensors)

    @jax.jit
    def value_and_gradients(params, x, weights):
        loss = lambda params, x: (module.apply({"params": params}, x) * weights).sum()  # noqa: E731
        return module.apply({"params": params}, x), jax.grad(loss, (0, 1))(params, x)

    value, (d_params, d_x) = value_and_gradients(params, x, weights)
    d_leaves = d_params["proj"] if isinstance(module, GatedGelu) else d_params
    ours = (value, d_x, *(d_leaves[name] for name in names))
    theirs = (expected, *gradients)
    for name, actual, wanted in zip(("value", "x", *names), ours, theirs, strict=True):
        wanted = wanted.detach().numpy()
        assert np.abs(wanted).max() > 1e-2, name
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_norm_with_silu_is_pytorchs_also_far_from_zero(mean):
    x = random(2, 5, 7, 16) + np.float32(mean)
    assert_values_and_gradients_agree(GroupNorm(4, 1e-5, nn.silu), x, torch_group_norm)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_layer_norm_is_pytorchs_also_far_from_zero(mean):
    assert_values_and_gradients_agree(LayerNorm(), random(2, 5, 24) + np.float32(mean), torch_layer_norm)


def test_gated_gelu_is_pytorchs():
    assert_values_and_gradients_agree(GatedGelu(12), 2.0 * random(2, 5, 8), torch_gated_gelu)


@pytest.mark.parametrize("way", ["xla_conv", "_unfolded", "_minimally_filtered", "_minimally_filtered in blocks"])
@pytest.mark.parametrize(("settings", "padding"), [({}, (1, 1, 1, 1)), ({"padding": ((0, 1), (2, 0))}, (2, 0, 0, 1))])
def test_all_ways_to_convolve_are_pytorchs(monkeypatch, way, settings, padding):
    monkeypatch.setattr(cpu_conv, "_MAX_UNFOLDED_ROWS", 70 if way == "_unfolded" else 69)
    monkeypatch.setattr(cpu_conv, "_MIN_FILTERED_CHANNELS", 5 if way == "xla_conv" else 4)
    if way.endswith("in blocks"):
        monkeypatch.setattr(cpu_conv, "_MAX_TILES", 10)  # 1 of 3 rows
    used = set()
    for name in ("xla_conv", "_unfolded", "_minimally_filtered"):
        convolve = getattr(cpu_conv, name)
        monkeypatch.setattr(cpu_conv, name, lambda *a, name=name, convolve=convolve: used.add(name) or convolve(*a))
    reference = functools.partial(torch_conv, padding=padding)
    assert_values_and_gradients_agree(Conv(6, **settings), random(2, 5, 7, 4), reference)
    assert used == {way.split()[0]}


def test_minimal_filtering_is_as_exact_as_xlas_sums():
    x, kernel, padding = random(1, 16, 16, 256), random(3, 3, 256, 64), ((1, 1), (1, 1))
    exact = torch_conv(torch.tensor(x).double(), torch.tensor(kernel).double(), None).numpy()
    filtered, summed = (
        np.abs(convolve(jnp.asarray(x), jnp.asarray(kernel), padding) - exact).max()
        for convolve in (cpu_conv._minimally_filtered, cpu_conv.xla_conv)
    )
    assert filtered < 3 * summed


@pytest.mark.parametrize("max_unfolded_rows", [0, 512])
def test_strided_convolutions_are_pytorchs(monkeypatch, max_unfolded_rows):
    monkeypatch.setattr(cpu_conv, "_MAX_UNFOLDED_ROWS", max_unfolded_rows)
    for shape in ((2, 6, 7, 4), (1, 9, 8, 4)):
        assert_values_and_gradients_agree(Conv(6, strides=2), random(*shape), functools.partial(torch_conv, stride=2))


def test_pointwise_convolutions_are_pytorchs():
    pointwise = functools.partial(torch_conv, padding=(0, 0, 0, 0))
    assert_values_and_gradients_agree(Conv(6, (1, 1), padding=0), random(2, 6, 7, 4), pointwise)
