"""Variational autoencoder between pixels and the latents a Stable Diffusion UNet works on."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.kernels.attention import dot_product_attention
from pidiff_jax.models.layers import Conv, Dense, GroupNorm
from pidiff_jax.models.unet_blocks import Resample, ResnetBlock

_EPSILON = 1e-6  # of every GroupNorm in the VAE; the UNet's residual blocks use 1e-5
_LOG_VARIANCE_RANGE = (-30.0, 20.0)
# Below and on the right only, unlike the UNet's.
DOWNSAMPLING_PADDING = ((0, 1), (0, 1))


@dataclass(frozen=True)
class VAESpec:
    """Sizes of an `AutoencoderKL`; the defaults are those of Stable Diffusion 1.x and 2.x.

    `scaling_factor` multiplies raw latents before diffusion; the module itself never applies it. `mid_attention` is
    diffusers' `mid_block_add_attention`.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    in_channels: int = 3
    mid_attention: bool = True

    @classmethod
    def sd15(cls) -> "VAESpec":
        """The VAE of Stable Diffusion 1.x and 2.x."""
        return cls()

    @property
    def downsampling(self) -> int:
        """Pixels on a side for one latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderKL(nn.Module):
    """Encoder to a diagonal Gaussian over raw (unscaled) latents, and decoder back to pixels.

    Source: diffusers models/autoencoders/autoencoder_kl.py; Rombach et al. 2022 (arXiv 2112.10752), section 3.1.
    """

    spec: VAESpec
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.spec, self.dtype)
        self.decoder = Decoder(self.spec, self.dtype)
        self.quant_conv = Conv(2 * self.spec.latent_channels, (1, 1), padding=0, dtype=self.dtype)
        self.post_quant_conv = Conv(self.spec.latent_channels, (1, 1), padding=0, dtype=self.dtype)

    def encode(self, pixels: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h2 w2 z"], Float[Array, "b h2 w2 z"]]:
        """Returns mean and log-variance of the raw latents, float32, for pixels in [-1, 1].

        Raises:
            ValueError: height or width is not a multiple of `spec.downsampling`.
        """
        factor = self.spec.downsampling
        if pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(
                f"expected pixels with height and width divisible by {factor}, got {pixels.shape[1:3]}; resize or "
                "crop them"
            )
        moments = self.quant_conv(self.encoder(pixels))
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        """Returns float32 pixels, about [-1, 1] and not clipped, for raw latents (already divided by the factor)."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Reconstructs pixels from the mean latents; also what `init` traces to create every parameter."""
        mean, _ = self.encode(pixels)
        return self.decode(mean)


class Encoder(nn.Module):
    """Pixels to moments: (b, h, w, c) -> (b, h/2^n, w/2^n, 2*latent_channels)."""

    spec: VAESpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 z"]:
        spec, last = self.spec, len(self.spec.block_out_channels) - 1
        x = Conv(spec.block_out_channels[0], dtype=self.dtype, name="conv_in")(x)
        for level, channels in enumerate(spec.block_out_channels):
            x = DownBlock(
                channels,
                spec.layers_per_block,
                level < last,
                spec.norm_num_groups,
                self.dtype,
                name=f"down_blocks_{level}",
            )(x)
        x = MidBlock(spec.norm_num_groups, spec.mid_attention, self.dtype, name="mid_block")(x)
        x = GroupNorm(spec.norm_num_groups, _EPSILON, nn.silu, self.dtype, name="conv_norm_out")(x)
        return Conv(2 * spec.latent_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents to pixels: (b, h, w, latent_channels) -> (b, h*2^n, w*2^n, c)."""

    spec: VAESpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        spec, last = self.spec, len(self.spec.block_out_channels) - 1
        x = Conv(spec.block_out_channels[-1], dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(spec.norm_num_groups, spec.mid_attention, self.dtype, name="mid_block")(x)
        for level, channels in enumerate(reversed(spec.block_out_channels)):
            x = UpBlock(
                channels,
                spec.layers_per_block + 1,
                level < last,
                spec.norm_num_groups,
                self.dtype,
                name=f"up_blocks_{level}",
            )(x)
        x = GroupNorm(spec.norm_num_groups, _EPSILON, nn.silu, self.dtype, name="conv_norm_out")(x)
        return Conv(spec.in_channels, dtype=self.dtype, name="conv_out")(x)


class DownBlock(nn.Module):
    """Residual blocks, then a strided convolution that halves the resolution."""

    channels: int
    num_layers: int
    downsample: bool
    num_groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for layer in range(self.num_layers):
            x = ResnetBlock(self.channels, self.num_groups, self.dtype, _EPSILON, name=f"resnets_{layer}")(x)
        if self.downsample:
            x = Resample(False, self.dtype, DOWNSAMPLING_PADDING, name="downsamplers_0")(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks, then nearest upsampling by two and a convolution."""

    channels: int
    num_layers: int
    upsample: bool
    num_groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for layer in range(self.num_layers):
            x = ResnetBlock(self.channels, self.num_groups, self.dtype, _EPSILON, name=f"resnets_{layer}")(x)
        return Resample(True, self.dtype, name="upsamplers_0")(x) if self.upsample else x


class MidBlock(nn.Module):
    """Residual block, single-head self-attention over space, residual block."""

    num_groups: int
    attention: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        x = ResnetBlock(channels, self.num_groups, self.dtype, _EPSILON, name="resnets_0")(x)
        if self.attention:
            x = SpatialAttention(self.num_groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(channels, self.num_groups, self.dtype, _EPSILON, name="resnets_1")(x)


class SpatialAttention(nn.Module):
    """Residual single-head self-attention between all positions of a feature map."""

    num_groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        tokens = GroupNorm(self.num_groups, _EPSILON, dtype=self.dtype, name="group_norm")(x)
        tokens = tokens.reshape(b, height * width, c)
        q, k, v = (Dense(c, axes=("embed", "heads"), dtype=self.dtype, name=f"to_{n}")(tokens) for n in "qkv")
        out = dot_product_attention(q, k, v, num_heads=1)
        out = Dense(c, axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out)
        return x + out.reshape(x.shape)
