"""Localisation: how much of the identity attention falls outside the face."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_EPSILON = 1e-8


def localisation_loss(
    attention_maps: Mapping[str, Float[Array, "b _h _w *t"]], face_mask: Float[Array, "b h w"]
) -> Float[Array, " b"]:
    """The share of the identity attention outside the face, in [0, 1], averaged over the maps.

    Args:
        attention_maps: layer path -> non-negative map (b, h, w) or, summed over tokens, (b, h, w, t), of any size. The
            weights of a softmax over identity tokens alone sum to 1 everywhere and say nothing: give the strengths
            that the UNet returns.
        face_mask: in [0, 1], of any size.

    Raises:
        ValueError: there are no maps.
    """
    if not attention_maps:
        raise ValueError(
            "expected at least one identity attention map, got none; ask the UNet for return_attention=True"
        )
    return jnp.stack([outside_share(each, face_mask) for each in attention_maps.values()]).mean(0)


def outside_share(attention: Float[Array, "b _h _w *t"], face_mask: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """The part of a map's mass that lies outside the face; 0 for a map of zeros."""
    strength = attention.astype(jnp.float32)
    if strength.ndim == 4:
        strength = strength.sum(-1)
    outside = 1.0 - area_resize(face_mask.astype(jnp.float32), strength.shape[1:])
    return (strength * outside).sum((1, 2)) / (strength.sum((1, 2)) + _EPSILON)


def area_resize(maps: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b _h _w"]:
    """Resizes so that each new cell holds the mean over the area that it covers, for any pair of sizes."""
    rows, columns = (_coverage(old, new) for old, new in zip(maps.shape[1:], size, strict=True))
    return jnp.einsum("ph,bhw,qw->bpq", rows, maps, columns)


def _coverage(old: int, new: int) -> np.ndarray:
    """(new, old): the fraction of each new cell that each old cell fills; rows sum to 1."""
    edges_new, edges_old = np.arange(new + 1) * (old / new), np.arange(old + 1)
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    return (np.maximum(high - low, 0.0) * (new / old)).astype(np.float32)
