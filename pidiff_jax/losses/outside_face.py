"""Preservation and disentanglement: outside the face, neither the identity nor another one changes the prediction."""

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


def preserve_loss(
    prediction: Float[Array, "b h w c"], base_prediction: Float[Array, "b h w c"], face_mask: Float[Array, "b h w"]
) -> Float[Array, " b"]:
    """Mean squared change of the prediction, outside the face, that the identity makes.

    Args:
        prediction: with identity.
        base_prediction: without identity, of the same noisy latents, timesteps and text; taken as a constant.
        face_mask: in [0, 1] at the latents' resolution.

    Source: the training code of Li et al. 2024 (arXiv 2311.17461), where it runs over the whole picture.
    """
    return outside_face_mse(prediction, base_prediction, face_mask)


def disentangle_loss(
    perturbed_prediction: Float[Array, "b h w c"], prediction: Float[Array, "b h w c"], face_mask: Float[Array, "b h w"]
) -> Float[Array, " b"]:
    """Mean squared change of the prediction, outside the face, that another identity makes.

    Args:
        perturbed_prediction: under another W+ code.
        prediction: under the example's own code; taken as a constant.
        face_mask: in [0, 1] at the latents' resolution.

    Source: Li et al. 2024 (arXiv 2311.17461) and their training code.
    """
    return outside_face_mse(perturbed_prediction, prediction, face_mask)
