"""UNet weights in diffusers' layout: the two-way table of tensors."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from flax import linen as nn

from pidiff_jax.convert.table import Entry, derive_table
from pidiff_jax.models.shapes import unet_shapes
from pidiff_jax.models.unet import UNet, UNetSpec
from pidiff_jax.paths import flatten, unflatten

# The table reads a trailing number as an index; in this one name it isn't.
_RENAMES = ((r"^time_embedding\.linear\.(\d)", r"time_embedding.linear_\1"),)


@lru_cache(maxsize=8)
def unet_table(spec: UNetSpec) -> tuple[Entry, ...]:
    """The table between diffusers' tensors and the base UNet's parameters; the identity branch isn't part of it."""
    return tuple(derive_table(nn.meta.unbox(unet_shapes(UNet(replace(spec, identity=None)))), _RENAMES))


def split_identity(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a UNet's tree into (base, identity branch); `optim.rules.merge` is the inverse."""
    parts: tuple[dict, dict] = ({}, {})
    for path, leaf in flatten(params).items():
        parts[path.endswith("_id/kernel")][path] = leaf
    base, identity = (unflatten(part) for part in parts)
    return base, identity
