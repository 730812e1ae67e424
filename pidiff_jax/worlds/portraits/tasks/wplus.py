"""Trains a small W+ space: an e4e encoder and a StyleGAN2 synthesis network as an autoencoder of aligned faces.

Ordered, disentangled levels do not come by themselves. Half of each batch is encoded twice, from a view with other colours
and from a view with another shape; the coarse layers are taken from the first, the fine ones from the second, and the
original picture must come out. So coarse layers learn to carry shape and fine layers colour.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.e4e import E4eEncoder
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.sources import checked_numbers, picture_source
from pidiff_jax.worlds.portraits.tasks.autoencoder import gradient_difference
from pidiff_jax.worlds.portraits.tasks.common import (
    ONE_PICTURE,
    PICTURE_RECORD,
    calibrated,
    weights_experiment,
)


def jitter_colours(pixels: Float[Array, "b h w c"], key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Mixes the colour channels by a random matrix near the identity and adds a random tint."""
    key_matrix, key_tint = jax.random.split(key)
    matrix = jnp.eye(3) + 0.35 * jax.random.normal(key_matrix, (len(pixels), 3, 3))
    tint = 0.2 * jax.random.normal(key_tint, (len(pixels), 1, 1, 3))
    return jnp.clip(jnp.einsum("bhwc,bcd->bhwd", pixels, matrix) + tint, -1.0, 1.0)


def warp_shape(pixels: Float[Array, "b h w c"], key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Stretches pictures by a random smooth warp: other proportions, same colours."""
    b, h, w, _ = pixels.shape
    key_scale, key_wave, key_phase = jax.random.split(key, 3)
    scale = jnp.exp(jax.random.uniform(key_scale, (b, 2, 1, 1), minval=-0.25, maxval=0.25))
    amplitude = 4.0 * jax.random.uniform(key_wave, (b, 2, 1, 1), minval=-1.0)
    phase = jax.random.uniform(key_phase, (b, 2, 1, 1), maxval=2 * jnp.pi)
    y, x = jnp.meshgrid(
        jnp.arange(h, dtype=jnp.float32) - h / 2 + 0.5, jnp.arange(w, dtype=jnp.float32) - w / 2 + 0.5, indexing="ij"
    )
    sy = y * scale[:, 0] + amplitude[:, 0] * jnp.sin(2 * jnp.pi * y / h + phase[:, 0])
    sx = x * scale[:, 1] + amplitude[:, 1] * jnp.sin(2 * jnp.pi * y / h + phase[:, 1])
    coordinates = jnp.stack([sy + h / 2 - 0.5, sx + w / 2 - 0.5], 1)

    def one(image, where):
        return jax.vmap(lambda c: jax.scipy.ndimage.map_coordinates(c, list(where), order=1, mode="nearest"), -1, -1)(
            image
        )

    return jax.vmap(one)(pixels, coordinates)


@dataclass(frozen=True)
class WPlusTask:
    """Reconstruct aligned faces from W+. Batch: pixels (b, h, w, 3) uint8; half of it trains level mixing."""

    encoder: E4eEncoder
    synthesis: Synthesis
    first_fine_layer: tuple[int, int] = (3, 7)  # the border between coarse and fine is drawn from this range

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `l1`, `gradient`, `pyramid` (l1 of halved pictures) and `delta` (size of the per-layer offsets)."""
        pixels = signed_pixels(batch["pixels"])
        key_colour, key_warp, key_border = jax.random.split(key, 3)

        def encode(x):
            return self.encoder.apply({"params": params["encoder"]}, x) + params["latent_avg"]

        if train:
            half = len(pixels) // 2
            mixed = pixels[:half]
            views = jnp.concatenate([pixels[half:], jitter_colours(mixed, key_colour), warp_shape(mixed, key_warp)])
            plain, shape_codes, colour_codes = jnp.split(encode(views), [len(pixels) - half, len(pixels)])
            border = jax.random.randint(
                key_border, (half, 1, 1), self.first_fine_layer[0], self.first_fine_layer[1] + 1
            )
            layers = jnp.arange(plain.shape[1])[None, :, None]
            wplus = jnp.concatenate([jnp.where(layers < border, shape_codes, colour_codes), plain])
        else:
            wplus = encode(pixels)
        decoded = self.synthesis.apply({"params": params["synthesis"]}, wplus)
        return _reconstruction(decoded, pixels, wplus)


def _reconstruction(decoded, pixels, wplus) -> tuple[dict, dict]:
    pyramid: Array | float = 0.0
    a, b = decoded, pixels
    for _ in range(3):
        a, b = (_halve(x) for x in (a, b))
        pyramid += jnp.abs(a - b).mean((1, 2, 3))
    mse = jnp.square(decoded - pixels).mean((1, 2, 3))
    values = {
        "l1": jnp.abs(decoded - pixels).mean((1, 2, 3)),
        "gradient": gradient_difference(decoded, pixels),
        "pyramid": pyramid,
        "delta": jnp.square(wplus - wplus.mean(1, keepdims=True)).mean((1, 2)),
    }
    return values, {"psnr_db": (10.0 * jnp.log10(4.0 / mse)).mean()}


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def build_wplus(config: Any) -> Experiment:
    """The run that makes wplus.safetensors: the W+ encoder and its synthesis network."""
    encoder, synthesis = E4eEncoder(networks.ENCODER), Synthesis(networks.STYLEGAN2)
    numbers = checked_numbers(config.data, "train")
    shape = (networks.NUM_WPLUS_LAYERS, networks.WPLUS_DIM)

    def init() -> dict[str, Any]:
        key_encoder, key_synthesis = jax.random.split(jax.random.key(config.seed))
        return {
            "encoder": encoder.init(key_encoder, jnp.zeros(ONE_PICTURE))["params"],
            "synthesis": synthesis.init(key_synthesis, jnp.zeros((1, *shape)))["params"],
            "latent_avg": jnp.zeros(shape),
        }

    return weights_experiment(
        config,
        file="wplus",
        init=init,
        finish_init=lambda params: {**params, "encoder": calibrated(encoder, params["encoder"], "train", "aligned")},
        losses=WPlusTask(encoder, synthesis).losses,
        sources=Sources(
            lambda: picture_source("train", *numbers, ("aligned",)),
            lambda: picture_source("validation", 128, 1, ("aligned",)),
        ),
        record=PICTURE_RECORD,
    )
