"""Exponential moving average of the trainable parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def decay_at(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the decay of the update after step `step` (from 0): min(decay, (1 + step) / (10 + step)).

    The ramp keeps the average of a short run from being dominated by the initial values.

    Source: the `num_updates` form of tf.train.ExponentialMovingAverage.
    """
    count = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + count) / (10 + count))


def update_ema(ema: Any, trainable: Any, decay: Float[Array, ""]) -> Any:
    """Returns decay * ema + (1 - decay) * trainable, leaf by leaf, in the dtype of `ema`."""
    return jax.tree.map(lambda old, new: (old + (1 - decay) * (new - old)).astype(old.dtype), ema, trainable)
