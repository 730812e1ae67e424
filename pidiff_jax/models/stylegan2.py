"""StyleGAN2: mapping network and synthesis network, so that W+ codes can be seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from pidiff_jax.arrays import add_up
from pidiff_jax.kernels.convolution import conv2d
from pidiff_jax.models.e4e import EqualLinear

FIR_TAPS = (1.0, 3.0, 3.0, 1.0)
_EPSILON = 1e-8


@dataclass(frozen=True)
class StyleGan2Spec:
    """Sizes of the networks; the defaults are FFHQ at 1024 px.

    channels: widths at 4, 8, 16, ... pixels; one per doubling up to `size`.
    """

    size: int = 1024
    style_dim: int = 512
    num_mapping_layers: int = 8
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64, 32)

    def __post_init__(self):
        if self.size != 4 * 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"expected one width per resolution from 4 to size={self.size}, got {len(self.channels)}; correct the spec"
            )

    @property
    def num_layers(self) -> int:
        """Number of W+ layers."""
        return 2 * len(self.channels)


class Mapping(nn.Module):
    """Latents z (b, d) to w (b, d).

    Source: Karras et al. 2020 (arXiv 1912.04958); layout of the rosinality PyTorch port (`style.1` ... `style.8`).
    """

    spec: StyleGan2Spec = StyleGan2Spec()

    @nn.compact
    def __call__(self, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        x = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + _EPSILON)
        for index in range(1, self.spec.num_mapping_layers + 1):
            x = scaled_leaky_relu(EqualLinear(self.spec.style_dim, lr_multiplier=0.01, name=f"style_{index}")(x))
        return x


class Synthesis(nn.Module):
    """W+ codes (b, l, d) to pictures (b, r, r, 3), roughly in [-1, 1].

    `noise` is one (r, r) picture per styled convolution, coarse to fine; None adds none.

    Source: Karras et al. 2020 (arXiv 1912.04958), figure 2 (d), skip connections; layout of the rosinality PyTorch port.
    """

    spec: StyleGan2Spec = StyleGan2Spec()

    @nn.compact
    def __call__(
        self, wplus: Float[Array, "b l d"], noise: Sequence[Float[Array, "_r _r"]] | None = None
    ) -> Float[Array, "b _r _r 3"]:
        spec = self.spec
        if wplus.shape[1:] != (spec.num_layers, spec.style_dim):
            raise ValueError(
                f"expected W+ codes of shape (b, {spec.num_layers}, {spec.style_dim}), got {wplus.shape}; "
                "use the encoder of the same generator"
            )
        pictures = list(noise) if noise is not None else [None] * (2 * len(spec.channels) - 1)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, None, None))
        constant = self.param("constant", init, (4, 4, spec.channels[0]))
        x = jnp.broadcast_to(constant, (len(wplus), *constant.shape))
        x = StyledConv(spec.channels[0], name="conv1")(x, wplus[:, 0], pictures[0])
        rgb = ToRGB(name="to_rgb1")(x, wplus[:, 1])
        for level, width in enumerate(spec.channels[1:]):
            first = 2 * level
            x = StyledConv(width, upsample=True, name=f"convs_{first}")(x, wplus[:, first + 1], pictures[first + 1])
            x = StyledConv(width, name=f"convs_{first + 1}")(x, wplus[:, first + 2], pictures[first + 2])
            rgb = upsample_fir(rgb) + ToRGB(name=f"to_rgbs_{level}")(x, wplus[:, first + 3])
        return rgb


def style_layer(name: str) -> int:
    """The layer of W+ that a module of `Synthesis` reads its style from: "conv1", "to_rgb1", "convs_3", "to_rgbs_0"."""
    if name in ("conv1", "to_rgb1"):
        return int(name == "to_rgb1")
    kind, _, number = name.rpartition("_")
    return int(number) + 1 if kind == "convs" else 2 * int(number) + 3


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style, and whose output is brought back to unit variance.

    Scaling the input and the output of one shared convolution equals convolving every sample with a kernel of its own.
    """

    features: int
    kernel_size: int = 3
    demodulate: bool = True
    upsample: bool = False
    initial_std: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], style: Float[Array, "b d"]) -> Float[Array, "b h2 w2 f"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        axes = (None, None, "conv_in", "conv_out")
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(nn.initializers.normal(self.initial_std), axes), shape
        )
        kernel = kernel / math.sqrt(x.shape[-1] * self.kernel_size**2)
        scale = EqualLinear(x.shape[-1], initial_bias=1.0, name="modulation")(style)
        y = (_convolve_upsampling if self.upsample else _convolve)(x * scale[:, None, None], kernel)
        if not self.demodulate:
            return y
        power = jnp.square(scale) @ jnp.square(kernel).sum((0, 1))
        return y * jax.lax.rsqrt(power + _EPSILON)[:, None, None]


def _convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c f"]) -> Float[Array, "b h w f"]:
    """Keeps the size; k is odd."""
    return conv2d(x, kernel, ((kernel.shape[0] // 2,) * 2,) * 2)


def _convolve_upsampling(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "b h2 w2 f"]:
    """A transposed convolution of stride 2, then the low-pass filter against its checkerboard; both in one convolution.

    Kernel and filter make one of 6x6, of which every second row and column meets a pixel, the others meet the zeros
    between them: so each of the four kinds of output pixel is a 3x3 convolution of the small picture. The filter costs nothing.
    """
    b, h, w, c = x.shape
    taps = _upsampling_taps()
    kernels = jnp.einsum("pak,qbl,klcf->abcpqf", taps, taps, kernel).reshape(3, 3, c, -1)
    y = _convolve(x, kernels).reshape(b, h, w, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


def _upsampling_taps() -> Float[np.ndarray, "2 3 3"]:
    """What the kernel's element k (last axis) adds to tap a of output pixels of the even and the odd kind."""
    taps = np.zeros((2, 3, 3), np.float32)
    for parity in range(2):
        for tap in range(3):
            shift = 2 * tap - 1 - parity  # of the 6-tap kernel, whose taps reach from -2 to 3
            for k in range(3):
                if 0 <= shift + k < len(FIR_TAPS):
                    taps[parity, tap, k] = 2.0 * FIR_TAPS[shift + k] / sum(FIR_TAPS)
    return taps


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, activation."""

    features: int
    upsample: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], style: Float[Array, "b d"], noise: Float[Array, "_h _w"] | None
    ) -> Float[Array, "b h2 w2 f"]:
        y = ModulatedConv(self.features, upsample=self.upsample, name="conv")(x, style)
        zeros = nn.initializers.zeros
        strength = self.param("noise_strength", nn.with_logical_partitioning(zeros, (None,)), (1,))
        bias = self.param("bias", nn.with_logical_partitioning(zeros, ("conv_out",)), (self.features,))
        if noise is not None:
            y = y + strength * noise[None, :, :, None]
        return scaled_leaky_relu(y + bias)


class ToRGB(nn.Module):
    """Features to a picture: a modulated 1x1 convolution without demodulation, and a bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], style: Float[Array, "b d"]) -> Float[Array, "b h w 3"]:
        # Nothing demodulates these: at a standard deviation of 1 a fresh network's levels add up to loud noise, which an
        # autoencoder must unlearn first (measured on 16 faces, 160 steps: 1 dB).
        y = ModulatedConv(3, kernel_size=1, demodulate=False, initial_std=0.1, name="conv")(x, style)
        return y + self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, (None,)), (3,))


def scaled_leaky_relu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Leaky ReLU of slope 0.2 times sqrt(2), which keeps the variance."""
    return nn.leaky_relu(x, 0.2) * math.sqrt(2.0)


def upsample_fir(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles the size: zeros between the pixels, then the low-pass filter."""
    b, h, w, c = x.shape
    spread = jnp.zeros((b, h, 2, w, 2, c), x.dtype).at[:, :, 0, :, 0].set(x).reshape(b, 2 * h, 2 * w, c)
    return filter_fir(spread, (2, 1))


def filter_fir(x: Float[Array, "b h w c"], padding: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """The [1, 3, 3, 1] low-pass filter of gain 2 per direction, as shifted sums: faster than a depthwise convolution."""
    taps = [2.0 * tap / sum(FIR_TAPS) for tap in FIR_TAPS]
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = padding
        padded = jnp.pad(x, pads)
        size = padded.shape[axis] - len(taps) + 1
        parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * tap for i, tap in enumerate(taps))
        x = add_up(parts)
    return x
