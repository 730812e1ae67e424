"""`AutoencoderKL` parameters from and to diffusers' state dict."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flax import linen as nn

from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.table import Entry, derive_table, ours_lazily, to_foreign
from pidiff_jax.models.shapes import vae_shapes
from pidiff_jax.models.vae import AutoencoderKL, VAESpec
from pidiff_jax.paths import unflatten

# Attention names in files written before diffusers 0.17.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@lru_cache(maxsize=8)
def vae_table(spec: VAESpec) -> tuple[Entry, ...]:
    """The table between our VAE and diffusers' `AutoencoderKL`."""
    return tuple(derive_table(nn.meta.unbox(vae_shapes(AutoencoderKL(spec)))))


def vae_from_diffusers(spec: VAESpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters from diffusers' tensors, with new or old attention names; dtypes are kept.

    Raises:
        ValueError: names every missing, unknown and misshapen tensor.
    """
    return unflatten(dict(vae_lazily(spec, LazyTensors.of(tensors))))


def vae_lazily(spec: VAESpec, tensors: LazyTensors) -> LazyTensors:
    """`vae_from_diffusers`, by path and one by one."""
    return ours_lazily(vae_table(spec), tensors.renamed({name: _new_name(name) for name in tensors}))


def vae_to_diffusers(spec: VAESpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Diffusers' tensors, with today's names; the inverse of `vae_from_diffusers`."""
    return to_foreign(vae_table(spec), params)


def _new_name(name: str) -> str:
    return re.sub(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda old: _OLD_NAMES[old.group()], name)
