"""The denoising loss: error of the prediction, weighted by noise level and by place."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pidiff_jax.diffusion.parameterisation import check_prediction_type
from pidiff_jax.diffusion.schedule import NoiseSchedule, snr


def denoising_loss(
    prediction: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    schedule: NoiseSchedule,
    timesteps: Int[Array, " b"],
    prediction_type: str,
    *,
    min_snr_gamma: float | None = None,
    face_mask: Float[Array, "b h w"] | None = None,
    background_weight: float | None = None,
    huber_c: float | None = None,
) -> Float[Array, " b"]:
    """Mean error per example, squared or pseudo-Huber.

    Args:
        prediction: of the network; compared with `target` in float32.
        target: what a perfect network predicts, see `diffusion.parameterisation.target`.
        schedule, timesteps, prediction_type: for `min_snr_gamma`.
        min_snr_gamma: weights noise levels by `min_snr_weights`; None weights all alike.
        face_mask: in [0, 1] at the latents' resolution; weights places together with `background_weight`.
        background_weight: weight outside the face relative to 1 inside. Give both of them or neither.
        huber_c: each place costs its `pseudo_huber` error; None: its squared error.
    """
    if (face_mask is None) != (background_weight is None):
        raise ValueError(
            f"expected face_mask and background_weight together, got background_weight={background_weight} and "
            f"{'no face_mask' if face_mask is None else 'a face_mask'}; give both, or neither for an unmasked loss"
        )
    errors = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)
    if huber_c is not None:
        errors = pseudo_huber(errors, huber_c)
    if face_mask is not None and background_weight is not None:
        errors *= spatial_weights(face_mask, background_weight)
    values = errors.mean((1, 2))
    if min_snr_gamma is not None:
        values *= min_snr_weights(schedule, timesteps, prediction_type, min_snr_gamma)
    return values


def pseudo_huber(squared: Float[Array, "*shape"], c: float) -> Float[Array, "*shape"]:
    """sqrt(squared + c^2) - c: about the error itself above `c` and proportional to its square below.

    So places that nothing can predict lead the gradient less than they do when squared.

    Source: Charbonnier et al. 1997 ("Deterministic edge-preserving regularization in computed imaging"); in diffusion, of
    a whole picture, Song and Dhariwal 2023 (arXiv 2310.14189).
    """
    return squared / (jnp.sqrt(squared + c**2) + c)  # the same, without the difference of two near numbers


def spatial_weights(face_mask: Float[Array, "b h w"], background_weight: float) -> Float[Array, "b h w"]:
    """Weights 1 in the face and `background_weight` outside, scaled to mean 1 for every example.

    So a small face counts as much as a large one, and the weight doesn't change the learning rate that fits.
    """
    weights = face_mask + (1.0 - face_mask) * background_weight
    return weights / jnp.maximum(weights.mean((1, 2), keepdims=True), 1e-6)


def min_snr_weights(
    schedule: NoiseSchedule, timesteps: Int[Array, " b"], prediction_type: str, gamma: float
) -> Float[Array, " b"]:
    """Weights that clip the loss on x0, which is the signal-to-noise ratio, at `gamma` (5 is usual).

    Source: Hang et al. 2023 (arXiv 2303.09556), Min-SNR-gamma: min(snr, gamma) for x0, divided by snr for eps and by
    snr + 1 for v.
    """
    check_prediction_type(prediction_type)
    ratio = snr(schedule, timesteps)
    if prediction_type == "x0":
        return jnp.minimum(ratio, gamma)
    if prediction_type == "v":
        return jnp.minimum(ratio, gamma) / (ratio + 1.0)
    return jnp.minimum(1.0, gamma / jnp.maximum(ratio, 1e-20))
