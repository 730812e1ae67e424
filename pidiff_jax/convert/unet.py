"""UNet weights in diffusers' layout: the spec from a config, and the two-way table of tensors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from pidiff_jax.convert.table import Entry, derive_table
from pidiff_jax.models.unet import UNet, UNetSpec

# Config keys that select what we don't implement, with the values that mean "not used". Keys that shape the network are
# read in `unet_spec_from_config`; every other key is refused.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Our attention logits and softmax are float32 whatever the compute type, which covers `upcast_attention`.
_NO_EFFECT = ("sample_size", "upcast_attention")
_DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
# The table reads a trailing number as an index; in this one name it isn't.
_RENAMES = ((r"^time_embedding\.linear\.(\d)", r"time_embedding.linear_\1"),)


def unet_spec_from_config(config: Mapping[str, Any]) -> UNetSpec:
    """Reads the config.json of a diffusers `UNet2DConditionModel`; missing keys have diffusers' defaults.

    Raises:
        ValueError: a key or a value that this UNet doesn't implement.
    """
    config = {key: _as_tuple(value) for key, value in config.items() if not key.startswith("_")}
    down_blocks = config.pop("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up_blocks = config.pop("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    channels = config.pop("block_out_channels", (320, 640, 1280, 1280))
    down_attention = tuple(_DOWN_BLOCKS.get(name) for name in down_blocks)
    up_attention = tuple(_UP_BLOCKS.get(name) for name in up_blocks)
    if None in down_attention or up_attention != down_attention[::-1]:
        raise ValueError(
            f"expected down_block_types of {sorted(_DOWN_BLOCKS)} and up_block_types that mirror them, got "
            f"{down_blocks} and {up_blocks}; other blocks aren't implemented"
        )
    spec = UNetSpec(
        in_channels=config.pop("in_channels", 4),
        out_channels=config.pop("out_channels", 4),
        block_out_channels=channels,
        layers_per_block=config.pop("layers_per_block", 2),
        down_attention=down_attention,
        num_heads=config.pop("attention_head_dim", 8),  # a misnomer in diffusers: the number of heads
        cross_attention_dim=config.pop("cross_attention_dim", 1280),
        use_linear_projection=config.pop("use_linear_projection", False),
        transformer_depth=config.pop("transformer_layers_per_block", 1),
        norm_num_groups=config.pop("norm_num_groups", 32),
    )
    problems = [f"{key}={value!r}" for key, value in config.items() if not _supported(key, value)]
    if problems:
        raise ValueError(
            f"expected a Stable Diffusion 1.x or 2.x UNet, got {', '.join(problems)} in its config; not implemented"
        )
    return spec


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _supported(key: str, value: Any) -> bool:
    if key in _NO_EFFECT:
        return True
    if isinstance(value, tuple):  # some configs repeat a flag for every level
        return all(_supported(key, item) for item in value)
    return value in _ONLY_VALUES.get(key, ())


@lru_cache(maxsize=8)
def unet_table(spec: UNetSpec) -> tuple[Entry, ...]:
    """The table between diffusers' tensors and the base UNet's parameters; the identity branch isn't part of it."""
    return tuple(derive_table(unet_shapes(replace(spec, identity=None)), _RENAMES))


def unet_shapes(spec: UNetSpec) -> dict[str, Any]:
    """The parameter tree as shape structs, without allocating anything."""
    size = 2 ** (len(spec.block_out_channels) - 1)
    latents = jax.ShapeDtypeStruct((1, size, size, spec.in_channels), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((1,), jnp.float32)
    text_embeds = jax.ShapeDtypeStruct((1, 1, spec.cross_attention_dim), jnp.float32)
    return nn.meta.unbox(jax.eval_shape(UNet(spec).init, jax.random.key(0), latents, timesteps, text_embeds)["params"])


def split_identity(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a UNet's tree into (base, identity branch); `optim.rules.merge` is the inverse."""
    parts: tuple[dict, dict] = ({}, {})
    for path, leaf in traverse_util.flatten_dict(dict(params), sep="/").items():
        parts[path.endswith("_id/kernel")][path] = leaf
    base, identity = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return base, identity
