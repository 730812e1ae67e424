"""Guidance: strengthens the condition by moving away from the prediction without it."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def classifier_free(
    unconditional: Float[Array, "b h w c"], conditional: Float[Array, "b h w c"], guidance_scale: ArrayLike
) -> Float[Array, "b h w c"]:
    """Extrapolates from the unconditional prediction past the conditional one; scale 1 gives the conditional one.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), equation 6, with guidance_scale = 1 + w.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def with_identity_apart(
    unconditional: Float[Array, "b h w c"],
    text_only: Float[Array, "b h w c"],
    conditional: Float[Array, "b h w c"],
    guidance_scale: ArrayLike,
    identity_guidance_scale: ArrayLike,
) -> Float[Array, "b h w c"]:
    """Two guidances one after the other: towards the text, and from there towards the identity.

    With equal scales it is `classifier_free` of the first and the last prediction.

    Source: Brooks et al. 2023 (arXiv 2211.09800), equation 3, with text and identity in place of picture and text.
    """
    towards_text = unconditional + guidance_scale * (text_only - unconditional)
    return towards_text + identity_guidance_scale * (conditional - text_only)


def rescale_guidance(
    guided: Float[Array, "b h w c"], conditional: Float[Array, "b h w c"], amount: ArrayLike
) -> Float[Array, "b h w c"]:
    """Gives the guided prediction the standard deviation of the conditional one, against overexposed pictures.

    amount: 0 changes nothing, 1 rescales fully; 0.7 is usual.

    Source: Lin et al. 2024 (arXiv 2305.08891), section 3.4.
    """
    axes = (1, 2, 3)
    factor = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return guided * (amount * factor + (1.0 - amount))
