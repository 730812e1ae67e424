"""Disentanglement: another identity changes the face only."""

from jaxtyping import Array, Float

from pidiff_jax.losses.outside_face import outside_face_mse


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
