"""The moving average has the value that its formula gives."""

import jax.numpy as jnp
import numpy as np

from pidiff_jax.optim.ema import decay_at, update_ema


def test_the_decay_ramps_up_to_its_value():
    decays = [float(decay_at(0.9, jnp.int32(step))) for step in (0, 1, 8, 71, 72, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 2 / 11, 0.5, 72 / 81, 73 / 82, 0.9], rtol=1e-6)


def test_the_average_is_the_weighted_sum():
    ema = update_ema({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 2.0])}, jnp.float32(0.75))
    np.testing.assert_allclose(ema["a"], [1.5, 2.0], rtol=1e-6)
