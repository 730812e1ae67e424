"""The mapper computes its equations, and a code of zeros is nobody; exports are in tests/convert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf

from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes
from tests.models.tiny_unet import random_params

GROUPS = ((0, 1), (1, 4))
SPECS = [
    MapperSpec(GROUPS, wplus_dim=5, token_dim=6, tokens_per_group=3),
    MapperSpec(GROUPS, wplus_dim=5, token_dim=6, tokens_per_group=3, kind="mlp", hidden_width=7),
]
each_kind = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


def params_of(spec):
    return random_params(nn.meta.unbox(mapper_shapes(IdentityMapper(spec))), seed=3)


def codes_of(spec, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((2, spec.num_layers, spec.wplus_dim)), jnp.float32)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


@each_kind
def test_tokens_are_those_of_the_equation(spec):
    params, wplus, expected = params_of(spec), np.asarray(codes_of(spec)), []
    for i, (start, end) in enumerate(spec.groups):
        x = wplus[:, start:end].reshape(2, -1)
        if spec.kind == "mlp":
            kernel, bias = params[f"hidden_{i}"]["kernel"], params[f"hidden_{i}"]["bias"]
            x = gelu(x @ kernel + bias) - gelu(bias)
        expected.append((x @ params[f"proj_{i}"]["kernel"]).reshape(2, 3, 6))
    x = np.concatenate(expected, axis=1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = x * params["norm"]["scale"] + params["norm"]["bias"]
    tokens = IdentityMapper(spec).apply({"params": params}, jnp.asarray(wplus))
    assert tokens.shape == (2, spec.num_tokens, 6)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5)


@each_kind
def test_every_token_of_a_code_of_zeros_is_the_norms_bias(spec):
    params = params_of(spec)
    tokens = jax.jit(IdentityMapper(spec).apply)({"params": params}, jnp.zeros((1, 4, 5)))
    np.testing.assert_allclose(tokens, np.broadcast_to(params["norm"]["bias"], tokens.shape), rtol=0, atol=1e-5)


@each_kind
def test_the_tokens_of_a_new_mapper_differ_from_each_other(spec):
    params = IdentityMapper(spec).init(jax.random.key(0), jnp.zeros((1, 4, 5)))
    tokens = np.asarray(IdentityMapper(spec).apply(params, codes_of(spec)))
    distances = np.linalg.norm(tokens[:, :, None] - tokens[:, None], axis=-1)
    assert (distances[:, ~np.eye(spec.num_tokens, dtype=bool)] > 0.5).all()


def test_a_group_does_not_see_the_layers_of_another():
    for spec in SPECS:
        wplus, params = codes_of(spec), {"params": params_of(spec)}
        before, after = (IdentityMapper(spec).apply(params, codes) for codes in (wplus, wplus.at[:, 1:].add(1)))
        np.testing.assert_array_equal(before[:, :3], after[:, :3])
        assert (np.abs(before[:, 3:] - after[:, 3:]).max(-1) > 0.01).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cubic"}, "kind 'linear' or 'mlp', got 'cubic'"),
        ({"kind": "mlp"}, "hidden_width of at least 1 of the kind 'mlp', got None"),
        ({"hidden_width": 8}, "hidden_width None of the kind 'linear', got 8"),
    ],
)
def test_a_hidden_layer_that_the_kind_lacks_or_needs_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        MapperSpec(**values)
