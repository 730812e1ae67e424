"""The UNet of Stable Diffusion 1.x and 2.x, with identity cross-attention."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from pidiff_jax.models.attention import Conditioning, IdentityAttentionSpec
from pidiff_jax.models.layers import Conv, Dense, GroupNorm, sinusoidal_embedding
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet_blocks import AttentionMaps, Block, MidBlock, with_prefix
from pidiff_jax.paths import flatten, unflatten

__all__ = ["IdentityAttentionSpec", "UNet", "UNetSpec", "init_identity_from_text"]


@dataclass(frozen=True)
class UNetSpec:
    """Sizes of a `UNet`; tuples have one entry per resolution, the highest first.

    down_attention: which resolutions have transformers (the middle block always has one).
    num_heads, transformer_depth: an int means the same at every resolution; the middle block has the last.
    identity: None leaves the identity branch out.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_attention: tuple[bool, ...] = (True, True, True, False)
    num_heads: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    transformer_depth: int | tuple[int, ...] = 1
    norm_num_groups: int = 32
    identity: IdentityAttentionSpec | None = None

    def __post_init__(self):
        num_levels = len(self.block_out_channels)
        for name in ("num_heads", "transformer_depth"):
            if isinstance(getattr(self, name), int):
                object.__setattr__(self, name, (getattr(self, name),) * num_levels)
        for name in ("down_attention", "num_heads", "transformer_depth"):
            if len(getattr(self, name)) != num_levels:
                raise ValueError(
                    f"expected {name} with {num_levels} entries, one per block_out_channels, got "
                    f"{getattr(self, name)}; give every level its own"
                )
        uses_heads = [*self.down_attention[:-1], True]
        for level, (width, used) in enumerate(zip(self.block_out_channels, uses_heads, strict=True)):
            heads = at_level(self.num_heads, level)
            if width % self.norm_num_groups or (used and width % heads):
                raise ValueError(
                    f"expected widths divisible by norm_num_groups={self.norm_num_groups} and their num_heads={heads}, "
                    f"got {width}; change one"
                )

    @classmethod
    def sd15(cls, identity: IdentityAttentionSpec | None = None) -> "UNetSpec":
        """Stable Diffusion 1.x."""
        return cls(identity=identity)

    @classmethod
    def sd21(cls, identity: IdentityAttentionSpec | None = None) -> "UNetSpec":
        """Stable Diffusion 2.x."""
        return cls(num_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True, identity=identity)


def at_level(values: int | tuple[int, ...], level: int) -> int:
    """The value of one resolution, where a spec may give one for all."""
    return values if isinstance(values, int) else values[level]


class UNet(nn.Module):
    """Predicts noise, v or clean latents (as it was trained) from noisy latents, a timestep, text and identity.

    Source: Rombach et al. 2022 (arXiv 2112.10752); diffusers models/unets/unet_2d_condition.py.
    """

    spec: UNetSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        noisy_latents: Float[Array, "b h w c"],
        timesteps: Num[Array, "b"],
        text: TextConditioning,
        identity_tokens: Float[Array, "b t d_id"] | Float[Array, "b p t d_id"] | None = None,
        identity_scale: Float[Array, "..."] | float | None = None,
        return_attention: bool = False,
        normalise_identity: bool = False,
    ) -> Float[Array, "b h w c2"] | tuple[Float[Array, "b h w c2"], AttentionMaps]:
        """Returns the prediction, float32, and with `return_attention` the identity attention maps.

        Args:
            noisy_latents: scaled latents; height and width divisible by 2 per resolution below the first.
            timesteps: 0..num_steps-1, may be fractional.
            text: from the model's conditioner, for the same samples.
            identity_tokens: from `IdentityMapper`, of one person, or of p people who attend each by themselves; None leaves
                the identity out.
            identity_scale: strength of the identity: (), per sample (b,), or anything that broadcasts to
                (b, h, w, t), with p people's tokens side by side in t; lower resolutions have the means of blocks. None
                means 1. Where it is 0, a layer's output is bitwise that without identity.
            return_attention: also return parameter path -> strength (b, h, w, t), attention weight times norm of the
                value, the mean over heads, not scaled by `identity_scale`.
            normalise_identity: what the identity adds gets the norm of what the text gives; see `as_long_as` of
                `identity_attention`.

        Raises:
            ValueError: shapes that don't fit the spec or each other.
        """
        spec = self.spec
        self._check_inputs(noisy_latents, text.embeds, identity_tokens)
        scale = (
            None
            if identity_tokens is None or identity_scale is None
            else expand_scale(identity_scale, noisy_latents.shape, math.prod(identity_tokens.shape[1:-1]))
        )
        cond = Conditioning(text.embeds, identity_tokens, scale, normalise_identity)
        time_embed = TimeEmbedding(spec.block_out_channels[0], self.dtype, name="time_embedding")(timesteps)

        x = Conv(spec.block_out_channels[0], dtype=self.dtype, name="conv_in")(noisy_latents)
        skips: list[Array] = [x]
        maps: AttentionMaps = {}
        for level in range(len(spec.block_out_channels)):
            name = f"down_blocks_{level}"
            x, outputs, new_maps = self._block(name, level, "down")(x, time_embed, cond)
            skips += outputs
            maps |= with_prefix(name, new_maps)

        x, new_maps = MidBlock(
            spec.norm_num_groups, at_level(spec.num_heads, -1), at_level(spec.transformer_depth, -1),
            spec.use_linear_projection, spec.identity, self.dtype, name="mid_block",
        )(x, time_embed, cond)  # fmt: skip
        maps |= with_prefix("mid_block", new_maps)

        for i, level in enumerate(reversed(range(len(spec.block_out_channels)))):
            name, num_layers = f"up_blocks_{i}", spec.layers_per_block + 1
            skips, used = skips[:-num_layers], skips[-num_layers:]
            x, _, new_maps = self._block(name, level, "up")(x, time_embed, cond, used)
            maps |= with_prefix(name, new_maps)

        x = GroupNorm(spec.norm_num_groups, 1e-5, nn.silu, self.dtype, name="conv_norm_out")(x)
        prediction = Conv(spec.out_channels, dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)
        return (prediction, maps) if return_attention else prediction

    def _block(self, name: str, level: int, direction: str) -> Block:
        """The block of a resolution on the down or up path; the lowest isn't downsampled, the highest not upsampled."""
        spec = self.spec
        last = level == (len(spec.block_out_channels) - 1 if direction == "down" else 0)
        return Block(
            channels=spec.block_out_channels[level],
            num_layers=spec.layers_per_block + (direction == "up"),
            num_groups=spec.norm_num_groups,
            num_heads=at_level(spec.num_heads, level) if spec.down_attention[level] else None,
            depth=at_level(spec.transformer_depth, level),
            use_linear_projection=spec.use_linear_projection,
            identity=spec.identity,
            resample=None if last else direction,
            dtype=self.dtype,
            name=name,
        )

    def _check_inputs(self, noisy_latents: Array, text_embeds: Array, identity_tokens: Array | None) -> None:
        spec = self.spec
        factor = 2 ** (len(spec.block_out_channels) - 1)
        height, width, channels = noisy_latents.shape[1:]
        if height % factor or width % factor or channels != spec.in_channels:
            raise ValueError(
                f"expected latents of {spec.in_channels} channels with height and width divisible by {factor}, got "
                f"{noisy_latents.shape}; latents are (batch, height, width, channels)"
            )
        if text_embeds.shape[-1] != spec.cross_attention_dim:
            raise ValueError(
                f"expected text_embeds of width {spec.cross_attention_dim}, got {text_embeds.shape}; the text encoder "
                "and the UNet's cross_attention_dim must agree"
            )
        if identity_tokens is None:
            return
        if spec.identity is None:
            raise ValueError("expected no identity_tokens, got some; give the UNet's spec an IdentityAttentionSpec")
        if identity_tokens.shape[-1] != spec.identity.token_dim:
            raise ValueError(
                f"expected identity tokens of width {spec.identity.token_dim}, got {identity_tokens.shape}; the "
                "token_dim of the mapper and the UNet must agree"
            )


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep and a two-layer MLP, four times as wide."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, timesteps: Num[Array, "b"]) -> Float[Array, "b d"]:
        dense = partial(Dense, 4 * self.channels, dtype=self.dtype)
        hidden = dense(axes=("embed", "mlp"), name="linear_1")(sinusoidal_embedding(timesteps, self.channels))
        return dense(axes=("mlp", "embed"), name="linear_2")(nn.silu(hidden))


def expand_scale(
    scale: Float[Array, "..."] | float, latents_shape: tuple[int, ...], num_tokens: int
) -> Float[Array, "#b #h #w #t"]:
    """Gives an identity scale its four axes.

    Raises:
        ValueError: it broadcasts neither as (), (b,) nor to (b, h, w, t).
    """
    scale = jnp.asarray(scale, jnp.float32)
    full = (latents_shape[0], latents_shape[1], latents_shape[2], num_tokens)
    expanded = scale.reshape(-1, 1, 1, 1) if scale.ndim <= 1 else scale
    fits = expanded.ndim == 4 and all(size in (1, limit) for size, limit in zip(expanded.shape, full, strict=True))
    if not fits:
        raise ValueError(
            f"expected an identity_scale of shape (), (b,) or broadcastable to (b, h, w, t)={full}, got {scale.shape}; "
            "write missing axes as 1"
        )
    return expanded


def init_identity_from_text(params: Mapping[str, Any], value_scale: float = 1.0) -> dict[str, Any]:
    """Copies every cross-attention's text kernels into its identity kernels, where the widths agree.

    Takes a tree of plain arrays (no axis names); returns a new one. Values are multiplied by `value_scale`, so that a
    smaller one starts training nearer to the base model. Kernels of other widths are left as they are.
    """
    flat = flatten(params)
    for path, kernel in flat.items():
        head, _, tail = path.rpartition("_id/kernel")
        source = flat.get(f"{head}/kernel")
        if tail or source is None or source.shape != kernel.shape:
            continue
        flat[path] = source * value_scale if head.endswith("to_v") else source
    return unflatten(flat)
