"""e4e: from an aligned face photograph to a W+ code of StyleGAN."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from pidiff_jax.models.ir_se import IRSE, IRSESpec
from pidiff_jax.models.layers import Conv


@dataclass(frozen=True)
class E4eSpec:
    """Sizes of an `E4eEncoder`; the defaults are the FFHQ encoder for StyleGAN2 at 1024 px.

    Layers before coarse_index read the coarsest features, those before middle_index the middle ones, the others the finest.
    style_width is the width of the pyramid and of the heads.
    """

    backbone: IRSESpec = IRSESpec()
    num_layers: int = 18
    wplus_dim: int = 512
    input_size: int = 256
    coarse_index: int = 3
    middle_index: int = 7
    style_width: int = 512


class EqualLinear(nn.Module):
    """Linear layer whose weight is scaled by 1/sqrt(fan in) at run time (equalised learning rate).

    Source: Karras et al. 2018 (arXiv 1710.10196), section 4.1.
    """

    features: int
    lr_multiplier: float = 1.0
    initial_bias: float = 0.0
    initial_std: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... f"]:
        init = nn.initializers.normal(self.initial_std / self.lr_multiplier)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, ("embed", "mlp")), (x.shape[-1], self.features)
        )
        init = nn.initializers.constant(self.initial_bias / self.lr_multiplier)
        bias = self.param("bias", nn.with_logical_partitioning(init, ("mlp",)), (self.features,))
        return x @ (kernel * (self.lr_multiplier / math.sqrt(x.shape[-1]))) + bias * self.lr_multiplier


class GradualStyleBlock(nn.Module):
    """Strided convolutions down to one position, then a linear layer: one style vector from a feature map."""

    width: int
    wplus_dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        index = 0
        while x.shape[1] > 1:
            x = nn.leaky_relu(Conv(self.width, strides=2, name=f"convs_{index}")(x), 0.01)
            index += 2  # the activations between have the odd numbers
        return EqualLinear(self.wplus_dim, name="linear")(x.reshape(len(x), -1))


class E4eEncoder(nn.Module):
    """Aligned faces in [-1, 1] to W+ codes relative to the average code: one base style plus an offset per layer.

    Source: Tov et al. 2021 (arXiv 2102.02766), section 4; encoder4editing models/encoders/psp_encoders.py.
    """

    spec: E4eSpec = E4eSpec()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b _s _s 3"]) -> Float[Array, "b l d"]:
        spec = self.spec
        if pixels.shape[1:3] != (spec.input_size, spec.input_size):
            raise ValueError(
                f"expected aligned faces of {spec.input_size}x{spec.input_size}, got {pixels.shape[1:3]}; resize them"
            )
        fine, middle, coarse = IRSE(spec.backbone, name="backbone")(pixels)[-3:]
        lateral = [Conv(spec.style_width, (1, 1), padding=0, name=f"latlayer{i}") for i in (1, 2)]
        if coarse.shape[-1] != spec.style_width:
            coarse = Conv(spec.style_width, (1, 1), padding=0, name="latlayer0")(coarse)
        middle = upsample_aligned(coarse, middle.shape[1]) + lateral[0](middle)
        fine = upsample_aligned(middle, fine.shape[1]) + lateral[1](fine)
        styles = []
        for index in range(spec.num_layers):
            source = coarse if index < spec.coarse_index else middle if index < spec.middle_index else fine
            styles.append(GradualStyleBlock(spec.style_width, spec.wplus_dim, name=f"styles_{index}")(source))
        base, *offsets = styles
        return jnp.stack([base, *(base + offset for offset in offsets)], axis=1)


def upsample_aligned(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """Bilinear resizing whose corner pixels keep their place (PyTorch's align_corners=True)."""
    rows, columns = (jnp.asarray(_aligned_weights(old, size)) for old in x.shape[1:3])
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns)


def _aligned_weights(old: int, new: int) -> np.ndarray:
    position = np.linspace(0.0, old - 1.0, new)
    return np.maximum(1.0 - np.abs(position[:, None] - np.arange(old)[None]), 0.0).astype(np.float32)


def encode_wplus(
    encoder: E4eEncoder, params: dict, latent_avg: Float[Array, "l d"], pixels: Float[Array, "b _s _s 3"]
) -> Float[Array, "b l d"]:
    """W+ codes of aligned faces in [-1, 1]: the encoder's output plus the average code."""
    return encoder.apply({"params": params}, pixels) + latent_avg
