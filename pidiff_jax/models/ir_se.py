"""IR-SE: the residual network with squeeze-and-excitation that both ArcFace and e4e are built on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from pidiff_jax.models.layers import Conv


@dataclass(frozen=True)
class IRSESpec:
    """Units per group and width of each group; every group halves the picture. The defaults are IR-SE50."""

    units: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    se_reduction: int = 16


class BatchNorm(nn.Module):
    """Batch normalisation in inference form: the statistics are parameters, and nothing here updates them.

    Freshly initialised it is a per-channel scale and shift; `calibrate` gives a fresh network statistics.
    """

    epsilon: float = 1e-5
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        def param(name: str, value: float) -> Array:
            init = nn.with_logical_partitioning(nn.initializers.constant(value), ("norm",))
            return self.param(name, init, (x.shape[-1],))

        scale, bias = param("scale", self.initial_scale), param("bias", 0.0)
        mean, var = param("mean", 0.0), param("var", 1.0)
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias


def calibrate(network: nn.Module, params: dict[str, Any], pixels: Float[Array, "b h w 3"]) -> dict[str, Any]:
    """Sets the statistics of every `BatchNorm` in a fresh network to those of its input for these pictures.

    So every layer starts with normalised features, as under batch normalisation, and training is much faster than from
    statistics of 0 and 1 (Salimans and Kingma 2016, arXiv 1602.07868, section 3). Returns new parameters.
    """
    flat = traverse_util.flatten_dict(params)

    def normalise(call: Callable, args: tuple, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            axes = tuple(range(args[0].ndim - 1))
            for name, value in (("mean", args[0].mean(axes)), ("var", args[0].var(axes))):
                path = (*context.module.path, name)
                flat[path] = flat[path].replace_boxed(value) if isinstance(flat[path], nn.Partitioned) else value
            scale, bias = (nn.meta.unbox(flat[(*context.module.path, name)]) for name in ("scale", "bias"))
            x = (args[0] - args[0].mean(axes)) * jax.lax.rsqrt(args[0].var(axes) + context.module.epsilon)
            return x * scale + bias
        return call(*args, **kwargs)

    with nn.intercept_methods(normalise):
        network.apply({"params": params}, pixels)
    return traverse_util.unflatten_dict(flat)


class PReLU(nn.Module):
    """Leaky ReLU with a learnt slope per channel; PyTorch initialises the slope with 0.25."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        init = nn.with_logical_partitioning(nn.initializers.constant(0.25), ("norm",))
        return jnp.where(x >= 0, x, x * self.param("slope", init, (x.shape[-1],)))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means."""

    reduction: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        pooled = x.mean((1, 2), keepdims=True)
        hidden = Conv(max(x.shape[-1] // self.reduction, 1), (1, 1), padding=0, use_bias=False, name="fc1")(pooled)
        gate = Conv(x.shape[-1], (1, 1), padding=0, use_bias=False, name="fc2")(nn.relu(hidden))
        return x * nn.sigmoid(gate)


class BottleneckIRSE(nn.Module):
    """BN, conv, PReLU, strided conv, BN, squeeze-and-excitation, beside a shortcut."""

    width: int
    stride: int
    se_reduction: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        if x.shape[-1] == self.width:
            shortcut = x[:, :: self.stride, :: self.stride]  # max pooling of a 1x1 window is subsampling
        else:
            shortcut = Conv(self.width, (1, 1), self.stride, padding=0, use_bias=False, name="shortcut_layer_0")(x)
            shortcut = BatchNorm(name="shortcut_layer_1")(shortcut)
        y = BatchNorm(name="res_layer_0")(x)
        y = Conv(self.width, use_bias=False, name="res_layer_1")(y)
        y = PReLU(name="res_layer_2")(y)
        y = Conv(self.width, strides=self.stride, use_bias=False, name="res_layer_3")(y)
        # A small initial scale keeps a fresh deep network near the identity; loaded weights replace it.
        y = BatchNorm(initial_scale=0.3, name="res_layer_4")(y)
        return SqueezeExcite(self.se_reduction, name="res_layer_5")(y) + shortcut


class IRSE(nn.Module):
    """Pictures in [-1, 1] to the last feature map of every group, fine to coarse.

    Source: Hu et al. 2018 (arXiv 1709.01507); Deng et al. 2019 (arXiv 1801.07698); the layout of the insightface PyTorch
    port that encoder4editing uses (models/encoders/helpers.py).
    """

    spec: IRSESpec = IRSESpec()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> list[Float[Array, "b _h _w _c"]]:
        x = Conv(self.spec.widths[0], use_bias=False, name="input_layer_0")(pixels)
        x = PReLU(name="input_layer_2")(BatchNorm(name="input_layer_1")(x))
        features, index = [], 0
        for units, width in zip(self.spec.units, self.spec.widths, strict=True):
            for unit in range(units):
                stride = 2 if unit == 0 else 1
                x = BottleneckIRSE(width, stride, self.spec.se_reduction, name=f"body_{index}")(x)
                index += 1
            features.append(x)
        return features
