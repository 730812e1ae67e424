"""The identity attention computes its equation, and its docstring's example holds; parity is in tests/parity."""

import doctest
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.models.identity_attention import identity_attention


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


def test_the_example_holds():
    results = doctest.testmod(sys.modules[identity_attention.__module__])
    assert results.attempted > 0 and results.failed == 0
