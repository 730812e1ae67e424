"""UNet weights in diffusers' layout: the two-way table of tensors."""

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

# The table reads a trailing number as an index; in this one name it isn't.
_RENAMES = ((r"^time_embedding\.linear\.(\d)", r"time_embedding.linear_\1"),)


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
