"""Training of a text-to-image base model: UNet and text encoder together, in latent space."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.diffusion.parameterisation import target as prediction_target
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise
from pidiff_jax.losses.denoising import denoising_loss
from pidiff_jax.models.clip import ClipText
from pidiff_jax.models.unet import UNet


def sample_latents(batch: dict, key: PRNGKeyArray, scaling_factor: float) -> Float[Array, "b h w c"]:
    """Draws latents anew from the stored mean and log-variance, scaled for diffusion."""
    noise = jax.random.normal(key, batch["latent_mean"].shape)
    return (batch["latent_mean"] + jnp.exp(0.5 * batch["latent_log_variance"]) * noise) * scaling_factor


@dataclass(frozen=True)
class TextToImageTask:
    """Predict the noise (or v) of noisy latents under a caption. Batch: latent_mean, latent_log_variance, text_ids.

    With probability `drop_text` the caption is replaced by `null_text_ids`, for classifier-free guidance.
    """

    unet: UNet
    text_encoder: ClipText
    schedule: NoiseSchedule
    prediction_type: str
    scaling_factor: float
    null_text_ids: tuple[int, ...]
    drop_text: float = 0.1
    min_snr_gamma: float | None = None

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `denoising`."""
        key_latent, key_noise, key_time, key_drop = jax.random.split(key, 4)
        latents = sample_latents(batch, key_latent, self.scaling_factor)
        noise = jax.random.normal(key_noise, latents.shape)
        timesteps = jax.random.randint(key_time, (len(latents),), 0, self.schedule.num_steps)
        dropped = jax.random.bernoulli(key_drop, self.drop_text, (len(latents), 1))
        text_ids = jnp.where(dropped, jnp.asarray(self.null_text_ids), batch["text_ids"])
        text_embeds = self.text_encoder.apply({"params": params["text_encoder"]}, text_ids)
        noisy = add_noise(self.schedule, latents, noise, timesteps)
        prediction = self.unet.apply({"params": params["unet"]}, noisy, timesteps, text_embeds)
        target = prediction_target(self.schedule, latents, noise, timesteps, self.prediction_type)
        return {
            "denoising": denoising_loss(
                prediction, target, self.schedule, timesteps, self.prediction_type, min_snr_gamma=self.min_snr_gamma
            )
        }, {}
