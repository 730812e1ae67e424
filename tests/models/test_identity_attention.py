"""The identity attention computes its equation, and its docstring's example holds; parity is in tests/parity."""

import doctest
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax.models.attention import Conditioning, CrossAttention, IdentityAttentionSpec
from pidiff_jax.models.identity_attention import identity_attention
from tests.models.tiny_unet import random_params


def arrays(b=2, n=3, t=4, d=6):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((b, n, d), (b, n, d), (b, t, d), (b, t, d))]


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("scale_shape", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 4), (2, 3, 4)])
def test_output_and_strength_are_those_of_the_equation(sink, scale_shape):
    text_out, query, keys, values = arrays()
    scale = np.random.default_rng(1).uniform(size=scale_shape).astype(np.float32)
    s = np.broadcast_to(scale, (2, 3, 4))
    expected, expected_strength = text_out.copy(), np.zeros((2, 3, 4))
    for sample, position, head in np.ndindex(2, 3, 2):
        part = slice(3 * head, 3 * head + 3)
        exponentials = np.exp(keys[sample, :, part] @ query[sample, position, part] / np.sqrt(3))
        weights = exponentials / (exponentials.sum() + sink)
        expected[sample, position, part] += (s[sample, position] * weights) @ values[sample, :, part]
        expected_strength[sample, position] += weights * np.linalg.norm(values[sample, :, part], axis=-1) / 2
    out, strength = identity_attention(
        *map(jnp.asarray, (text_out, query, keys, values, scale)), num_heads=2, sink=sink
    )
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(strength, expected_strength, rtol=0, atol=1e-5)


def test_scale_zero_is_bitwise_the_text_even_for_values_that_overflow():
    text_out, query, keys, values = map(jnp.asarray, arrays())
    text_out = text_out.at[0, 0].set(-0.0)
    scale = jnp.ones((2, 3, 4)).at[:, 0].set(0)
    for v in (values, jnp.full_like(values, jnp.inf)):
        out, _ = identity_attention(text_out, query, keys, v, scale, num_heads=2)
        np.testing.assert_array_equal(*(np.asarray(x)[:, 0].view(np.uint32) for x in (out, text_out)))
        assert (out[:, 1:] != text_out[:, 1:]).all()


@pytest.mark.parametrize("variant", ["decoupled", "independent", "residual"])
def test_a_sink_is_one_more_token_of_zeros(variant):
    rng = np.random.default_rng(2)
    x, text, tokens = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(2, 9, 8), (2, 5, 6), (2, 4, 10)])
    scale = jnp.asarray(rng.uniform(size=(2, 9, 4)), jnp.float32)
    with_sink, without = (CrossAttention(2, IdentityAttentionSpec(variant, 10, sink)) for sink in (True, False))
    params = random_params(nn.meta.unbox(with_sink.init(jax.random.key(0), x, Conditioning(text)))["params"])
    longer = jnp.pad(tokens, ((0, 0), (0, 1), (0, 0)))
    for strength in (None, scale):
        out, attention = with_sink.apply({"params": params}, x, Conditioning(text, tokens), strength)
        padded = None if strength is None else jnp.pad(strength, ((0, 0), (0, 0), (0, 1)), constant_values=0.3)
        expected, their_attention = without.apply({"params": params}, x, Conditioning(text, longer), padded)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(attention, their_attention[..., :4], rtol=0, atol=1e-5)
        np.testing.assert_allclose(their_attention[..., 4], 0, rtol=0, atol=1e-5)
    plain, _ = without.apply({"params": params}, x, Conditioning(text, tokens))
    assert np.abs(plain - with_sink.apply({"params": params}, x, Conditioning(text, tokens))[0]).max() > 0.01


def test_the_example_holds():
    results = doctest.testmod(sys.modules[identity_attention.__module__])
    assert results.attempted > 0 and results.failed == 0
