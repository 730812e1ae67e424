"""The squared error outside the face, which `preserve` and `disentangle` share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def outside_face_mse(
    prediction: Float[Array, "b h w c"], reference: Float[Array, "b h w c"], face_mask: Float[Array, "b h w"]
) -> Float[Array, " b"]:
    """Mean squared error over the area outside the face, per example; no gradient flows into `reference`.

    `face_mask` is in [0, 1] at the latents' resolution; where it is 1 everywhere, the error is 0.
    """
    outside = 1.0 - face_mask.astype(jnp.float32)
    difference = prediction.astype(jnp.float32) - jax.lax.stop_gradient(reference).astype(jnp.float32)
    squared = jnp.square(difference).mean(-1)
    return (squared * outside).sum((1, 2)) / jnp.maximum(outside.sum((1, 2)), 1e-6)
