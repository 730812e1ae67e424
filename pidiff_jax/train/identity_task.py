"""Training of the identity adapter: the method itself.

The UNet predicts the noise (or v) of a picture of a person under its caption and the W+ code of *another* photograph of that
person. Only the identity branch and the mapper are trainable (see the config's parameter rules); the losses decide how.
Which of them come from the paper and which are ours is written down in docs/method.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pidiff_jax.diffusion.parameterisation import target as prediction_target
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise
from pidiff_jax.losses.denoising import denoising_loss
from pidiff_jax.losses.localisation import localisation_loss
from pidiff_jax.losses.outside_face import disentangle_loss, preserve_loss
from pidiff_jax.models.identity_mapper import IdentityMapper
from pidiff_jax.models.text_conditioning import ClipConditioner, TextConditioning
from pidiff_jax.models.unet import UNet
from pidiff_jax.ranges import check_number


@dataclass(frozen=True)
class Dropout:
    """Probabilities of training a sample without text, without identity, and without both."""

    text: float = 0.05
    identity: float = 0.05
    both: float = 0.05

    def __post_init__(self):
        chances = (self.text, self.identity, self.both)
        if not (all(chance >= 0 for chance in chances) and sum(chances) <= 1):
            raise ValueError(
                f"expected dropout probabilities of at least 0 with a sum of at most 1, got {self}; correct them"
            )

    def sample(self, key: PRNGKeyArray, batch_size: int) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
        """Masks of the samples that lose their text and their identity; one draw, so the three cases exclude each other."""
        u = jax.random.uniform(key, (batch_size,))
        both = u < self.both
        no_text = both | ((u >= self.both) & (u < self.both + self.text))
        no_identity = both | ((u >= self.both + self.text) & (u < self.both + self.text + self.identity))
        return no_text, no_identity


@dataclass(frozen=True)
class IdentityTask:
    """Denoise with text and identity. Batch: the schema of data_pipeline/schema.py.

    active_losses: names of the losses to compute; the others cost nothing.
    background_weight: weight of the denoising loss outside the face; the face has 1, None means no mask.
    huber_c: the error from which on the denoising loss takes its size instead of its square; None means all squared.
    min_time_fraction: smallest noise level trained, as a fraction of the schedule (0 trains all).
    """

    unet: UNet
    conditioner: ClipConditioner
    mapper: IdentityMapper
    schedule: NoiseSchedule
    prediction_type: str
    scaling_factor: float
    null_text_ids: tuple[int, ...]
    active_losses: tuple[str, ...] = ("denoising",)
    dropout: Dropout = Dropout()
    background_weight: float | None = None
    huber_c: float | None = None
    min_snr_gamma: float | None = None
    min_time_fraction: float = 0.0

    def __post_init__(self):
        check_number("a min_time_fraction", self.min_time_fraction, least=0, below=1)
        check_number("a background_weight", self.background_weight, least=0, none_means="no mask")
        check_number("a huber_c", self.huber_c, least=1e-6, most=1e6, none_means="a squared error")
        check_number("a min_snr_gamma", self.min_snr_gamma, above=0, none_means="no weighting")

    def predict(
        self, params: Mapping[str, Any], noisy: Array, timesteps: Array, text: TextConditioning, wplus: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The UNet's prediction under a text and a W+ code, and the identity attention's maps."""
        tokens = self.mapper.apply({"params": params["mapper"]}, wplus)
        return self.unet.apply({"params": params["unet"]}, noisy, timesteps, text, tokens, return_attention=True)

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example values of the active losses (b,), and metrics."""
        key_latent, key_noise, key_time, key_drop, key_wplus = jax.random.split(key, 5)
        size = len(batch["wplus"])
        latents = sample_latents(batch, key_latent, self.scaling_factor)
        noise = jax.random.normal(key_noise, latents.shape)
        first = int(self.min_time_fraction * self.schedule.num_steps)
        timesteps = jax.random.randint(key_time, (size,), first, self.schedule.num_steps)
        noisy = add_noise(self.schedule, latents, noise, timesteps)
        target = prediction_target(self.schedule, latents, noise, timesteps, self.prediction_type)

        no_text, no_identity = self.dropout.sample(key_drop, size)
        text_ids, wplus, mask = batch["text_ids"], batch["wplus"], batch["face_mask"]
        if train:
            text_ids = jnp.where(no_text[:, None], jnp.asarray(self.null_text_ids), text_ids)
            wplus = jnp.where(no_identity[:, None, None], 0.0, wplus)
        text = self.conditioner(params, text_ids)
        prediction, maps = self.predict(params, noisy, timesteps, text, wplus)
        values = {
            "denoising": denoising_loss(
                prediction,
                target,
                self.schedule,
                timesteps,
                self.prediction_type,
                min_snr_gamma=self.min_snr_gamma,
                face_mask=None if self.background_weight is None else mask,
                background_weight=self.background_weight,
                huber_c=self.huber_c,
            )
        }
        if "localisation" in self.active_losses:
            values["localisation"] = jnp.where(no_identity & train, 0.0, localisation_loss(maps, mask))
        if "preserve" in self.active_losses:
            base = self.unet.apply({"params": params["unet"]}, noisy, timesteps, text)
            values["preserve"] = preserve_loss(prediction, base, mask)
        if "disentangle" in self.active_losses:
            other = perturb_wplus(batch["wplus"], key_wplus)
            perturbed, _ = self.predict(params, noisy, timesteps, text, other)
            values["disentangle"] = disentangle_loss(perturbed, prediction, mask)
        return values, {}


def sample_latents(batch: Mapping[str, Array], key: PRNGKeyArray, scaling_factor: float) -> Float[Array, "b h w c"]:
    """Draws latents anew from the stored mean and log-variance, scaled for diffusion."""
    noise = jax.random.normal(key, batch["latent_mean"].shape)
    return (batch["latent_mean"] + jnp.exp(0.5 * batch["latent_log_variance"]) * noise) * scaling_factor


def perturb_wplus(wplus: Float[Array, "b l d"], key: PRNGKeyArray) -> Float[Array, "b l d"]:
    """Codes of other identities: each code moves towards (or past) a random other code of the batch."""
    key_pair, key_amount = jax.random.split(key)
    shift = jax.random.randint(key_pair, (), 1, max(len(wplus), 2))
    amount = jax.random.uniform(key_amount, (len(wplus), 1, 1), minval=0.5, maxval=1.5)
    return wplus + amount * (jnp.roll(wplus, shift, axis=0) - wplus)
