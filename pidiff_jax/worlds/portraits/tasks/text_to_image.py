"""Trains the text-to-image base model: UNet and text encoder together, in latent space."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from data_pipeline.sources import ArraySource
from pidiff_jax.diffusion.parameterisation import target as prediction_target
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise
from pidiff_jax.locations import optional_path
from pidiff_jax.losses.denoising import denoising_loss
from pidiff_jax.models.text_conditioning import ClipConditioner, TextConditioning
from pidiff_jax.models.unet import UNet
from pidiff_jax.ranges import check_number
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.train.identity_task import sample_latents
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.sources import caption_source, checked_numbers, encode_latents
from pidiff_jax.worlds.portraits.tasks.common import weights_experiment
from pidiff_jax.worlds.portraits.tokenizer import TEXT_LENGTH
from pidiff_jax.worlds.portraits.weight_files import check_weights, load_weights


@dataclass(frozen=True)
class TextToImageTask:
    """Predict the noise (or v) of noisy latents under a caption. Batch: latent_mean, latent_log_variance, text_ids.

    With probability `drop_text` the caption is replaced by `null_text_ids`, for classifier-free guidance.
    """

    unet: UNet
    conditioner: ClipConditioner
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
        text = self.conditioner(params, text_ids)
        noisy = add_noise(self.schedule, latents, noise, timesteps)
        prediction = self.unet.apply({"params": params["unet"]}, noisy, timesteps, text)
        target = prediction_target(self.schedule, latents, noise, timesteps, self.prediction_type)
        return {
            "denoising": denoising_loss(
                prediction, target, self.schedule, timesteps, self.prediction_type, min_snr_gamma=self.min_snr_gamma
            )
        }, {}


def build_text_to_image(config: Any) -> Experiment:
    """The run that makes base.safetensors, on the latents of the shipped (or given) autoencoder."""
    c, path = networks.base_components(), optional_path(config.base.path, "config.base.path")
    check_weights("vae", path)
    check_number("config.dropout.text", config.dropout.text, least=0, most=1)
    check_number("config.min_snr_gamma", config.min_snr_gamma, above=0, none_means="no weighting")
    numbers = checked_numbers(config.data, "train")
    task = TextToImageTask(
        c.unet, c.conditioner, c.schedule, c.prediction_type, networks.VAE.scaling_factor, c.null_text_ids,
        drop_text=config.dropout.text, min_snr_gamma=config.min_snr_gamma,
    )  # fmt: skip

    def init() -> dict[str, Any]:
        key_unet, key_text = jax.random.split(jax.random.key(config.seed))
        text = TextConditioning(jnp.zeros((1, TEXT_LENGTH, networks.TOKEN_DIM)))
        ids = jnp.zeros((1, TEXT_LENGTH), jnp.int32)
        return {
            "unet": c.unet.init(key_unet, jnp.zeros((1, *c.noise_shape)), jnp.zeros((1,)), text)["params"],
            "text_encoder": c.conditioner.text_encoder.init(key_text, ids)["params"],
        }

    def source(split: str, num_people: int, per_person: int) -> ArraySource:
        encode = encode_latents(c.vae, load_weights("vae", path)["vae"])
        return caption_source(encode, split, num_people, per_person)

    latent = jax.ShapeDtypeStruct(c.noise_shape, np.float32)
    return weights_experiment(
        config,
        file="base",
        init=init,
        losses=task.losses,
        sources=Sources(lambda: source("train", *numbers), lambda: source("validation", 512, 2)),
        record={
            "latent_mean": latent,
            "latent_log_variance": latent,
            "text_ids": jax.ShapeDtypeStruct((TEXT_LENGTH,), np.int32),
        },
    )
