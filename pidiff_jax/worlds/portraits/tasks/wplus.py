"""Trains a small W+ space: an e4e encoder and a StyleGAN2 synthesis network as an autoencoder of aligned faces.

Ordered, disentangled levels do not come by themselves. Half of each batch is encoded twice, from a view with other colours
and from a view with another shape; the coarse layers are taken from the first, the fine ones from the second, and the
original picture must come out. So coarse layers learn to carry shape and fine layers colour.

A picture's error hardly knows small things such as a nose or brows, which make a person all the same. e4e has a loss of
identity for them, in the features of a face recogniser; here a linear reading of the code must tell what the face was drawn
from.

Where codes lie is free: an affine change of theirs, taken back in the synthesis, draws the same pictures. At the end they are
put away from zero, which means "no identity", and around which a mapper without a bias makes tokens without anything in common.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.locations import optional_path
from pidiff_jax.models.e4e import E4eEncoder, encode_wplus
from pidiff_jax.models.stylegan2 import Synthesis, style_layer
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.worlds.portraits import networks, renderer
from pidiff_jax.worlds.portraits.sources import checked_numbers, picture_source, pictures, wplus_codes
from pidiff_jax.worlds.portraits.tasks.autoencoder import gradient_difference
from pidiff_jax.worlds.portraits.tasks.common import (
    ONE_PICTURE,
    PICTURE_RECORD,
    calibrated,
    weights_experiment,
)
from pidiff_jax.worlds.portraits.weight_files import check_weights, load_weights

SPREAD = 0.5  # standard deviation of the codes' numbers
DISTANCE = 2.0  # of each layer's average code from zero, in the layer's standard deviations
_NUM_PLACING = 1000  # people whose codes tell where they lie
_VARIANCE_OF_UNIFORM = 1.0 / 12.0  # of the identity parameters, which are uniform in [0, 1]


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
    """Reconstruct aligned faces from W+, and read the identity from it.

    Batch: pixels (b, h, w, 3) uint8, person_id (b,) int32; half of it trains level mixing.
    """

    encoder: E4eEncoder
    synthesis: Synthesis
    reading: nn.Dense
    first_fine_layer: tuple[int, int] = (3, 7)  # the border between coarse and fine is drawn from this range

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example losses and the metrics `psnr_db` and `r2` (of the reading).

        `l1`, `gradient`, `pyramid` (l1 of halved pictures), `delta` (size of the per-layer offsets) and `identity` (squared
        error of the identity parameters that are read, as a share of their variance).
        """
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
        values, metrics = _reconstruction(decoded, pixels, wplus)
        identity = jax.vmap(renderer.identity_parameters)(batch["person_id"])
        read = self.reading.apply({"params": params["reading"]}, wplus.reshape(len(wplus), -1))
        values["identity"] = jnp.square(read - identity).mean(-1) / _VARIANCE_OF_UNIFORM
        return values, metrics | {"r2": 1.0 - values["identity"].mean()}


def placed(params: dict[str, Any], codes: Float[np.ndarray, "n l d"]) -> dict[str, Any]:
    """The same networks with the codes elsewhere, as `SPREAD` and `DISTANCE` say; pictures and readings stay, to rounding.

    codes: what the parameters make of many faces. Each layer's average keeps its direction.
    """
    average, variance = codes.mean(0), codes.var(0).mean(-1, keepdims=True)
    factor = SPREAD / jnp.sqrt(variance.mean())
    unit = average / jnp.sqrt(jnp.square(average).mean(-1, keepdims=True))
    shift = factor * (DISTANCE * jnp.sqrt(variance) * unit - average)

    flat = flatten(params)
    for path, value in flat.items():
        if re.match(r"encoder/styles_\d+/linear/", path):
            flat[path] = value * factor
        elif path.endswith("/modulation/kernel"):
            layer, bias = style_layer(path.split("/")[1]), path.replace("kernel", "bias")
            flat[path] = value / factor
            flat[bias] = flat[bias] - shift[layer] @ flat[path] / math.sqrt(len(value))
    flat["latent_avg"] = flat["latent_avg"] * factor + shift
    flat["reading/kernel"] = flat["reading/kernel"] / factor
    flat["reading/bias"] = flat["reading/bias"] - shift.reshape(-1) @ flat["reading/kernel"]
    return unflatten(flat)


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
    """The run that makes wplus.safetensors: the W+ encoder, its synthesis network and the reading of the identity."""
    encoder, synthesis = E4eEncoder(networks.ENCODER), Synthesis(networks.STYLEGAN2)
    reading = nn.Dense(renderer.NUM_IDENTITY_PARAMETERS, kernel_init=nn.initializers.zeros)
    start = optional_path(config.base.path, "config.base.path")
    if start:
        check_weights("wplus", start)
    numbers = checked_numbers(config.data, "train")
    shape = (networks.NUM_WPLUS_LAYERS, networks.WPLUS_DIM)

    def init() -> dict[str, Any]:
        key_encoder, key_synthesis = jax.random.split(jax.random.key(config.seed))
        return {
            "encoder": encoder.init(key_encoder, jnp.zeros(ONE_PICTURE))["params"],
            "synthesis": synthesis.init(key_synthesis, jnp.zeros((1, *shape)))["params"],
            "latent_avg": jnp.zeros(shape),
            "reading": reading.init(key_encoder, jnp.zeros((1, math.prod(shape))))["params"],
        }

    def finish_init(params: dict[str, Any]) -> dict[str, Any]:
        if start:
            return load_weights("wplus", start, params)
        return {**params, "encoder": calibrated(encoder, params["encoder"], "train", "aligned")}

    def finish_weights(params: dict[str, Any]) -> dict[str, Any]:
        faces = pictures("train", _NUM_PLACING, 1, "aligned")["pixels"]
        codes = wplus_codes(lambda x: encode_wplus(encoder, params["encoder"], params["latent_avg"], x), faces)
        return placed(params, codes)

    return weights_experiment(
        config,
        file="wplus",
        init=init,
        finish_init=finish_init,
        finish_weights=finish_weights,
        losses=WPlusTask(encoder, synthesis, reading).losses,
        sources=Sources(
            lambda: picture_source("train", *numbers, ("aligned",)),
            lambda: picture_source("validation", 128, 1, ("aligned",)),
        ),
        record=PICTURE_RECORD,
    )
