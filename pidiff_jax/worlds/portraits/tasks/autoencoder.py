"""Trains the latent autoencoder."""

from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.vae import AutoencoderKL
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.renderer import View
from pidiff_jax.worlds.portraits.sources import checked_numbers, picture_source
from pidiff_jax.worlds.portraits.tasks.common import ONE_PICTURE, PICTURE_RECORD, weights_experiment


def gradient_difference(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean absolute difference of the pictures' horizontal and vertical pixel differences: rewards sharp edges."""
    delta = a - b
    horizontal = jnp.abs(jnp.diff(delta, axis=2)).mean(axis=(1, 2, 3))
    vertical = jnp.abs(jnp.diff(delta, axis=1)).mean(axis=(1, 2, 3))
    return horizontal + vertical


@dataclass(frozen=True)
class AutoencoderTask:
    """Reconstruct pictures through a sampled latent. Batch: pixels (b, h, w, 3) uint8."""

    vae: AutoencoderKL

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `l1`, `gradient`, `mse` and `kl` (nats per latent value); metric `psnr_db`."""
        pixels = signed_pixels(batch["pixels"])
        variables = {"params": params["vae"]}
        mean, log_variance = self.vae.apply(variables, pixels, method="encode")
        noise = jax.random.normal(key, mean.shape) if train else 0.0
        decoded = self.vae.apply(variables, mean + jnp.exp(0.5 * log_variance) * noise, method="decode")
        axes = (1, 2, 3)
        mse = jnp.square(decoded - pixels).mean(axes)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean(axes)
        values = {
            "l1": jnp.abs(decoded - pixels).mean(axes),
            "gradient": gradient_difference(decoded, pixels),
            "mse": mse,
            "kl": kl,
        }
        return values, {"psnr_db": (10.0 * jnp.log10(4.0 / mse)).mean()}


def build_autoencoder(config: Any) -> Experiment:
    """The run that makes vae.safetensors."""
    vae = AutoencoderKL(networks.VAE)
    numbers, views = checked_numbers(config.data, "train"), config.data.views
    if not views or not set(views) <= set(get_args(View)):
        raise ValueError(f"expected config.data.views of {get_args(View)}, got {views!r}; correct it")
    return weights_experiment(
        config,
        file="vae",
        init=lambda: {"vae": vae.init(jax.random.key(config.seed), jnp.zeros(ONE_PICTURE))["params"]},
        losses=AutoencoderTask(vae).losses,
        sources=Sources(
            lambda: picture_source("train", *numbers, views),
            lambda: picture_source("validation", 64, 2, ("wild",)),
        ),
        record=PICTURE_RECORD,
    )
