"""Convolution: one function that picks the way for a platform and size."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.kernels.cpu_convolution import Padding, minimally_filtered_conv2d, unfolded_conv2d
from pidiff_jax.kernels.platform import target_platform

Implementation = Literal["matmul", "unfolded", "minimally_filtered", "xla"]

# On a CPU, minimal filtering pays once a tile's products, which grow with the square of the channels, outweigh its transforms
# and what it takes to compile, and once there are enough positions for the kernel's transform not to be most of the work.
_MIN_FILTERED_CHANNELS, _MIN_FILTERED_POSITIONS = 128, 256
# Other convolutions over at most this many positions are unfolded: there, reading the kernel is most of the work.
_MAX_UNFOLDED_POSITIONS = 512


def conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "u v c f"], padding: Padding, strides: int = 1
) -> Float[Array, "b h2 w2 f"]:
    """2-D convolution, NHWC and HWIO. `padding` is ((top, bottom), (left, right)) in pixels.

    All implementations agree to rounding.
    """
    chosen = choose_implementation(target_platform(), x.shape, kernel.shape, padding, strides, x.dtype)
    if chosen == "matmul":
        return jnp.matmul(x, kernel[0, 0])
    if chosen == "unfolded":
        return unfolded_conv2d(x, kernel, padding, strides)
    if chosen == "minimally_filtered":
        return minimally_filtered_conv2d(x, kernel, padding)
    return xla_conv2d(x, kernel, padding, strides)


def choose_implementation(
    platform: str,
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    padding: Padding,
    strides: int,
    dtype: DTypeLike,
) -> Implementation:
    """Picks the implementation for a platform ("cpu", "gpu", "tpu") and size: on a CPU what measured fastest.

    A 1x1 convolution is a matrix product everywhere; beyond that, XLA's own convolution is the right one off the CPU.
    """
    if kernel_shape[:2] == (1, 1) and strides == 1 and not any(any(sides) for sides in padding):
        return "matmul"
    if platform != "cpu":
        return "xla"
    positions = math.prod(x_shape[:3]) / strides**2
    fits = kernel_shape[:2] == (3, 3) and strides == 1 and max(max(sides) for sides in padding) <= 2
    wide = min(kernel_shape[2:]) >= _MIN_FILTERED_CHANNELS and dtype == jnp.float32
    if fits and wide and positions >= _MIN_FILTERED_POSITIONS:
        return "minimally_filtered"
    return "unfolded" if positions <= _MAX_UNFOLDED_POSITIONS else "xla"


def xla_conv2d(
    x: Float[Array, "b h w c"], kernel: Float[Array, "u v c f"], padding: Padding, strides: int = 1
) -> Float[Array, "b h2 w2 f"]:
    """XLA's own convolution; arguments as `conv2d`."""
    return jax.lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
