"""From per-example values of several losses to one number; which losses there are and which are switched on."""

from collections.abc import Mapping
from math import inf

import jax.numpy as jnp
from jaxtyping import Array, Float

# The losses of the identity training; docs/method.md says where each comes from.
IDENTITY_LOSSES = ("denoising", "localisation", "preserve", "disentangle")


def active_losses(weights: Mapping[str, float], valid: tuple[str, ...] = IDENTITY_LOSSES) -> tuple[str, ...]:
    """Names of the losses with a weight other than 0: the only ones worth computing.

    Raises:
        ValueError: an unknown name, a negative weight, or nothing to train on.
    """
    unknown = sorted(set(weights) - set(valid))
    if unknown:
        raise ValueError(f"expected losses of {', '.join(valid)}, got {', '.join(unknown)}; correct the names")
    negative = sorted(name for name, weight in weights.items() if not 0 <= weight < inf)
    if negative:
        raise ValueError(
            f"expected finite loss weights of at least 0, got {weights[negative[0]]} for {negative[0]}; 0 is off"
        )
    active = tuple(name for name, weight in weights.items() if weight)
    if not active:
        raise ValueError(
            f"expected a weight above 0 for one of {', '.join(valid)}, got none; 1.0 is usual for {valid[0]}"
        )
    return active


def reduce_losses(
    values: Mapping[str, Float[Array, "..."]], weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean over the batch of the weighted sum of losses, and the unweighted mean of each loss; float32.

    Raises:
        ValueError: a loss with a weight has no values, values have no weight, or values aren't one per example.
    """
    needed = {name for name, weight in weights.items() if weight}
    if not needed <= values.keys() <= weights.keys():
        raise ValueError(
            f"expected values of the losses {sorted(needed)}, and weights for all, got values of {sorted(values)} and "
            f"weights of {sorted(weights)}; correct the names of the weights"
        )
    shapes = {name: value.shape for name, value in values.items() if value.ndim != 1}
    if shapes:
        raise ValueError(f"expected per-example values (b,), got {shapes}; reduce over everything but the batch")
    means = {name: value.astype(jnp.float32).mean() for name, value in values.items()}
    weighted = [weights[name] * values[name].astype(jnp.float32) for name in sorted(values)]
    return sum(weighted[1:], start=weighted[0]).mean(), means
