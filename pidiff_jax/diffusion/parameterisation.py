"""What the network predicts: the noise ("eps"), the velocity ("v") or the clean latents ("x0"); and conversions.

With a = sqrt(alphas_cumprod), s = sqrt(1 - alphas_cumprod): noisy = a * x0 + s * eps and v = a * eps - s * x0.

Source: Salimans & Ho 2022 (arXiv 2202.00512), section 4 and appendix D.
"""

from typing import Literal, get_args

from jaxtyping import Array, ArrayLike, Float, Int

from pidiff_jax.diffusion.schedule import NoiseSchedule, signal_and_noise_scales

PredictionType = Literal["eps", "v", "x0"]
PREDICTION_TYPES = get_args(PredictionType)


def target(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[ArrayLike, "*b"],
    prediction_type: str,
) -> Float[Array, "b h w c"]:
    """What a perfect network would predict from the latents with this noise."""
    check_prediction_type(prediction_type)
    if prediction_type == "eps":
        return noise
    if prediction_type == "x0":
        return latents
    signal, sigma = signal_and_noise_scales(schedule, timesteps, latents.ndim)
    return signal * noise - sigma * latents


def to_x0(
    prediction: Float[Array, "b h w c"],
    noisy_latents: Float[Array, "b h w c"],
    signal: Float[Array, "..."],
    sigma: Float[Array, "..."],
    prediction_type: str,
) -> Float[Array, "b h w c"]:
    """The clean latents that a prediction stands for; signal and sigma are a and s, from `signal_and_noise_scales`, say.

    From "eps" it isn't finite where signal is 0 (the last step of a zero-terminal-SNR schedule).
    """
    check_prediction_type(prediction_type)
    if prediction_type == "x0":
        return prediction
    if prediction_type == "eps":
        return (noisy_latents - sigma * prediction) / signal
    return signal * noisy_latents - sigma * prediction


def to_eps(
    prediction: Float[Array, "b h w c"],
    noisy_latents: Float[Array, "b h w c"],
    signal: Float[Array, "..."],
    sigma: Float[Array, "..."],
    prediction_type: str,
) -> Float[Array, "b h w c"]:
    """The noise that a prediction stands for; signal and sigma are a and s."""
    check_prediction_type(prediction_type)
    if prediction_type == "eps":
        return prediction
    if prediction_type == "x0":
        return (noisy_latents - signal * prediction) / sigma
    return signal * prediction + sigma * noisy_latents


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError for an unknown prediction type."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"expected prediction_type to be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}; "
            "diffusers' names epsilon, v_prediction and sample are eps, v and x0 here"
        )
