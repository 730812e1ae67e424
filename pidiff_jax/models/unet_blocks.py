"""Blocks of the Stable Diffusion UNet; parameter paths mirror diffusers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.kernels.recompute import recomputed
from pidiff_jax.models.attention import Conditioning, CrossAttention, IdentityAttentionSpec, SelfAttention
from pidiff_jax.models.layers import Conv, Dense, GroupNorm, LayerNorm, upsample_nearest

_TRANSFORMER_EPSILON = 1e-6

AttentionMaps = dict[str, Array]


class ResnetBlock(nn.Module):
    """Two normalised convolutions with the time embedding, if any, added between; a residual connection.

    The VAE's blocks have no time embedding, and an epsilon of 1e-6.
    """

    channels: int
    num_groups: int
    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time_embed: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b h w c2"]:
        h = GroupNorm(self.num_groups, self.epsilon, nn.silu, self.dtype, name="norm1")(x)
        h = Conv(self.channels, dtype=self.dtype, name="conv1")(h)
        if time_embed is not None:
            shift = Dense(self.channels, axes=("embed", "conv_out"), dtype=self.dtype, name="time_emb_proj")(
                nn.silu(time_embed)
            )
            h = h + shift[:, None, None]
        h = GroupNorm(self.num_groups, self.epsilon, nn.silu, self.dtype, name="norm2")(h)
        h = Conv(self.channels, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, (1, 1), padding=0, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


def _gate(projected: Float[Array, "b n f2"]) -> Float[Array, "b n f"]:
    value, gate = jnp.split(projected, 2, axis=-1)
    return value * gate * (0.5 + 0.5 * jax.lax.erf(gate * 0.5**0.5))  # jax.nn.gelu's erfc costs twice as much


class GatedGelu(nn.Module):
    """Half of a projection, gated by the exact GELU of the other half (GEGLU, arXiv 2002.05202)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n f"]:
        projected = Dense(2 * self.features, axes=("embed", "mlp"), dtype=self.dtype, name="proj")(x)
        return recomputed(_gate)(projected)


class FeedForward(nn.Module):
    """Gated MLP, four times as wide as its input."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        hidden = GatedGelu(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return Dense(x.shape[-1], axes=("mlp", "embed"), dtype=self.dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a LayerNorm and beside a residual connection."""

    num_heads: int
    identity: IdentityAttentionSpec | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        cond: Conditioning,
        identity_scale: Float[Array, "#b #n #pt"] | None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n pt"] | None]:
        """Returns the features and the identity attention's strength, weight times norm of the value (None without it)."""
        x = x + SelfAttention(self.num_heads, self.dtype, name="attn1")(LayerNorm(dtype=self.dtype, name="norm1")(x))
        cross_attention = CrossAttention(self.num_heads, self.identity, self.dtype, name="attn2")
        normed = LayerNorm(dtype=self.dtype, name="norm2")(x)
        attended, strength = cross_attention(normed, cond, identity_scale)
        x = x + attended
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(dtype=self.dtype, name="norm3")(x)), strength


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a feature map, beside a residual connection."""

    num_heads: int
    depth: int
    num_groups: int
    use_linear_projection: bool
    identity: IdentityAttentionSpec | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], cond: Conditioning) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        """Returns the features and the identity attention maps (b, h, w, t) by parameter path."""
        b, height, width, channels = x.shape
        scale = scale_at(cond.identity_scale, height, width)
        tokens = GroupNorm(self.num_groups, _TRANSFORMER_EPSILON, dtype=self.dtype, name="norm")(x)
        tokens = self._project("proj_in", tokens).reshape(b, height * width, channels)
        maps = {}
        for i in range(self.depth):
            name = f"transformer_blocks_{i}"
            block = TransformerBlock(self.num_heads, self.identity, self.dtype, name=name)
            tokens, strength = block(tokens, cond, scale)
            if strength is not None:
                maps[f"{name}/attn2"] = strength.reshape(b, height, width, -1)
        return x + self._project("proj_out", tokens.reshape(x.shape)), maps

    def _project(self, name: str, x: Array) -> Array:
        if self.use_linear_projection:
            return Dense(x.shape[-1], axes=("embed", "embed"), dtype=self.dtype, name=name)(x)
        return Conv(x.shape[-1], (1, 1), padding=0, dtype=self.dtype, name=name)(x)


def scale_at(scale: Float[Array, "#b h w #t"] | None, height: int, width: int) -> Float[Array, "#b n #t"] | None:
    """The identity scale at a level's resolution, as a sequence; n is 1 where it doesn't depend on the position.

    Lower resolutions have the means of blocks. Interpolation would let a region reach past its blocks: a person's
    identity on the neighbour.
    """
    if scale is None:
        return None
    b, h, w, t = scale.shape
    if (h, w) == (1, 1):
        return scale.reshape(b, 1, t)
    rows, columns = min(h, height), min(w, width)
    means = scale.reshape(b, rows, h // rows, columns, w // columns, t).mean((2, 4))
    return jnp.broadcast_to(means, (b, height, width, t)).reshape(b, -1, t)


class Resample(nn.Module):
    """Halves the resolution by a strided convolution, or doubles it by repetition and a convolution.

    `padding` as in `Conv`; the VAE pads below and on the right only where it halves.
    """

    up: bool
    dtype: DTypeLike = jnp.float32
    padding: int | Sequence[tuple[int, int]] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        if self.up:
            x = upsample_nearest(x)
        return Conv(x.shape[-1], strides=1 if self.up else 2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Block(nn.Module):
    """One resolution of the down or up path: residual blocks, each followed by a transformer if `num_heads` is given.

    On the up path each residual block takes one of `skips` (last first) beside its input.
    """

    channels: int
    num_layers: int
    num_groups: int
    num_heads: int | None
    depth: int
    use_linear_projection: bool
    identity: IdentityAttentionSpec | None
    resample: str | None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time_embed: Float[Array, "b d"],
        cond: Conditioning,
        skips: list[Array] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Array], AttentionMaps]:
        """Returns the features, those after each step (a down block's skip connections), and the attention maps."""
        outputs: list[Array] = []
        maps: AttentionMaps = {}
        for i in range(self.num_layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = ResnetBlock(self.channels, self.num_groups, self.dtype, name=f"resnets_{i}")(x, time_embed)
            if self.num_heads is not None:
                name = f"attentions_{i}"
                x, new_maps = SpatialTransformer(
                    self.num_heads,
                    self.depth,
                    self.num_groups,
                    self.use_linear_projection,
                    self.identity,
                    self.dtype,
                    name=name,
                )(x, cond)
                maps |= with_prefix(name, new_maps)
            outputs.append(x)
        if self.resample is not None:
            x = Resample(self.resample == "up", self.dtype, name=f"{self.resample}samplers_0")(x)
            outputs.append(x)
        return x, outputs, maps


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    num_groups: int
    num_heads: int
    depth: int
    use_linear_projection: bool
    identity: IdentityAttentionSpec | None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], time_embed: Float[Array, "b d"], cond: Conditioning
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        """Returns the features and the attention maps."""
        channels = x.shape[-1]
        x = ResnetBlock(channels, self.num_groups, self.dtype, name="resnets_0")(x, time_embed)
        x, maps = SpatialTransformer(
            self.num_heads, self.depth, self.num_groups, self.use_linear_projection, self.identity, self.dtype,
            name="attentions_0",
        )(x, cond)  # fmt: skip
        x = ResnetBlock(channels, self.num_groups, self.dtype, name="resnets_1")(x, time_embed)
        return x, with_prefix("attentions_0", maps)


def with_prefix(name: str, maps: AttentionMaps) -> AttentionMaps:
    """Puts a module's name before the paths of its attention maps."""
    return {f"{name}/{path}": strength for path, strength in maps.items()}
