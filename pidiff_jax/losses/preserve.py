"""Preservation: with identity on, the base model's prediction outside the face stays."""

from jaxtyping import Array, Float

from pidiff_jax.losses.outside_face import outside_face_mse


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
