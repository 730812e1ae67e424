"""The shared layers give PyTorch's values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch.nn.functional as F
from flax import linen as nn

from pidiff_jax.models.layers import Conv, GroupNorm, LayerNorm
from pidiff_jax.models.unet_blocks import GatedGelu
from tests.kernels.against_torch import (
    assert_values_and_gradients_agree,
    channels_first,
    channels_last,
    random,
    torch_conv,
)
from tests.models.tiny_unet import random_params


def torch_group_norm(x, scale, bias):
    return F.silu(channels_last(F.group_norm(channels_first(x), 4, scale, bias, 1e-5)))


def torch_layer_norm(x, scale, bias):
    return F.layer_norm(x, x.shape[-1:], scale, bias, 1e-5)


def torch_gated_gelu(x, kernel, bias):
    value, gate = (x @ kernel + bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def assert_module_agrees(module, x, reference):
    """Of the module and of `reference(x, *parameters)`, values and gradients."""
    names = ("kernel", "bias") if isinstance(module, GatedGelu | Conv) else ("scale", "bias")
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x)))["params"]
    params = random_params(shapes)
    nested = isinstance(module, GatedGelu)
    leaves = params["proj"] if nested else params

    def apply(x, *leaves):
        params = dict(zip(names, leaves, strict=True))
        return module.apply({"params": {"proj": params} if nested else params}, x)

    assert_values_and_gradients_agree(apply, reference, (x, *(leaves[name] for name in names)), ("x", *names))


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_norm_with_silu_is_pytorchs_also_far_from_zero(mean):
    x = random(2, 5, 7, 16) + np.float32(mean)
    assert_module_agrees(GroupNorm(4, 1e-5, nn.silu), x, torch_group_norm)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_layer_norm_is_pytorchs_also_far_from_zero(mean):
    assert_module_agrees(LayerNorm(), random(2, 5, 24) + np.float32(mean), torch_layer_norm)


def test_gated_gelu_is_pytorchs():
    assert_module_agrees(GatedGelu(12), 2.0 * random(2, 5, 8), torch_gated_gelu)


@pytest.mark.parametrize(
    ("module", "padding", "stride"),
    [
        (Conv(6), (1, 1, 1, 1), 1),
        (Conv(6, padding=((0, 1), (2, 0))), (2, 0, 0, 1), 1),
        (Conv(6, strides=2), (1, 1, 1, 1), 2),
        (Conv(6, (1, 1), padding=0), (0, 0, 0, 0), 1),
    ],
)
def test_convolutions_are_pytorchs(module, padding, stride):
    assert_module_agrees(module, random(2, 5, 7, 4), functools.partial(torch_conv, padding=padding, stride=stride))
