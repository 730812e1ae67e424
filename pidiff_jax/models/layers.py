"""Layers shared by the networks: Linen modules whose parameters carry logical axis names, channels last."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from pidiff_jax.kernels.convolution import conv2d
from pidiff_jax.kernels.recompute import recomputed

Initializer = Callable[..., Array]
LogicalAxes = tuple[str | None, ...]

default_kernel_init = nn.initializers.lecun_normal()


class Dense(nn.Module):
    """Affine map of the last axis; kernel (in, out), the transpose of PyTorch's Linear.weight.

    `axes` are the logical names of the kernel's two dimensions, read by `sharding.rules`.
    """

    features: int
    use_bias: bool = True
    axes: LogicalAxes = ("embed", "mlp")
    kernel_init: Initializer = default_kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... f"]:
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(self.kernel_init, self.axes), (x.shape[-1], self.features)
        )
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],)), (self.features,)
            )
            y = y + bias.astype(self.dtype)
        return y


class Conv(nn.Module):
    """2-D convolution in NHWC; kernel HWIO. `padding` is pixels on every side, or ((top, bottom), (left, right))."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: int | Sequence[tuple[int, int]] = 1
    use_bias: bool = True
    kernel_init: Initializer = default_kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        axes = (None, None, "conv_in", "conv_out")
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, axes), shape)
        padding = self.padding if not isinstance(self.padding, int) else ((self.padding,) * 2,) * 2
        y = conv2d(jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype), padding, self.strides)
        if self.use_bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (self.features,)
            )
            y = y + bias.astype(self.dtype)
        return y


def _identity(x: Array) -> Array:
    return x


class GroupNorm(nn.Module):
    """Group normalisation over space and the channels of a group; statistics in float32.

    Per-channel moments first, then groups, then one fused scale-and-shift: one pass over the picture for the moments
    and one for the result, which on a CPU is several times faster than normalising a (b, h, w, groups, c/groups) view.
    `activation` is applied to the result. Backward recomputes both from `x`, so that training keeps one array instead
    of three.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] = _identity
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"expected channels divisible by num_groups={self.num_groups}, got {channels}; change the spec's "
                "norm_num_groups or its widths"
            )
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (channels,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (channels,))

        @recomputed
        def normalise(x, scale, bias):
            x32 = x.astype(jnp.float32)
            # Shifting by one pixel keeps E[x^2] - E[x]^2 from cancelling when the mean is far larger than the spread.
            shift = _group_mean(jax.lax.stop_gradient(x32[:, :1, :1, :]), self.num_groups)
            centred = x32 - shift
            mean = _group_mean(jnp.mean(centred, axis=(1, 2), keepdims=True), self.num_groups)
            square = _group_mean(jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True), self.num_groups)
            variance = jnp.maximum(square - jnp.square(mean), 0.0)
            factor = jax.lax.rsqrt(variance + self.epsilon) * scale
            return self.activation((centred * factor + (bias - mean * factor)).astype(self.dtype))

        return normalise(x, scale, bias)


def _group_mean(x: Float[Array, "b 1 1 c"], num_groups: int) -> Float[Array, "b 1 1 c"]:
    """Averages channels within each group and repeats the average over the group."""
    grouped = x.reshape(*x.shape[:-1], num_groups, -1)
    return jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape).reshape(x.shape)


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis; statistics in float32. Backward recomputes everything from `x`."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (width,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (width,))

        @recomputed
        def normalise(x, scale, bias):
            x32 = x.astype(jnp.float32)
            centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
            variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
            return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)

        return normalise(x, scale, bias)


def sinusoidal_embedding(timesteps: Num[Array, "b"], dim: int, max_period: float = 10_000.0) -> Float[Array, "b {dim}"]:
    """Sinusoidal embedding of (possibly fractional) timesteps: cosines first, then sines, as Stable Diffusion wants.

    Source: diffusers `get_timestep_embedding` with flip_sin_to_cos=True, downscale_freq_shift=0.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def upsample_nearest(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Repeats every pixel `factor` times in both directions."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)
