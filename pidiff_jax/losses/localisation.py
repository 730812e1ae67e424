"""Localisation: how much of the identity attention falls outside the face."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from pidiff_jax.arrays import area_resize

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
    _, height, width = strength.shape
    outside = 1.0 - area_resize(face_mask.astype(jnp.float32), (height, width))
    return (strength * outside).sum((1, 2)) / (strength.sum((1, 2)) + _EPSILON)
