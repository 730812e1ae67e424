"""Training of the latent autoencoder of an embedded world."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from pidiff_jax.models.vae import AutoencoderKL


def unit_pixels(pixels: UInt8[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Bytes to floats in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


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
        pixels = unit_pixels(batch["pixels"])
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
