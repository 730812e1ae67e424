"""One guided prediction: what the network says with and without the conditions, put together."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from pidiff_jax.arrays import add_up
from pidiff_jax.diffusion.guidance import classifier_free, rescale_guidance, with_identity_apart
from pidiff_jax.models.attention import CONDITIONS
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import expand_scale
from pidiff_jax.sampling.components import Components

# How often the network is asked in a step: with all conditions; also without any; also with the text alone.
Passes = Literal[1, 2, 3]


class Guidance(NamedTuple):
    """How strongly the conditions are followed, each a number.

    scale: of the text, or, in one or two passes, of text and identity together.
    identity: of the identity by itself; read in three passes only.
    rescale: see `rescale_guidance`.
    """

    scale: ArrayLike
    identity: ArrayLike
    rescale: ArrayLike


class Conditions(NamedTuple):
    """What all steps read, with a leading axis of passes times pictures, the pass with all conditions last.

    tokens: of p people, None without identity. remembered: keys and values, by the UNet's paths.
    """

    text: TextConditioning
    tokens: Float[Array, "kb p t d"] | None
    remembered: Mapping[str, Any]


def make_conditions(
    components: Components,
    params: Mapping[str, Any],
    text_ids: Int[Array, "b m"],
    tokens: Float[Array, "b p t d"] | None = None,
    negative_ids: Int[Array, "b m"] | None = None,
    *,
    latents_shape: tuple[int, ...],
    passes: Passes = 2,
) -> Conditions:
    """Encodes the texts, and lets the network project what doesn't change from step to step.

    tokens: of the mapper. Passes without identity have, as in training, those of the zero W+ code.
    negative_ids: what guidance leads away from; None: the empty text.
    latents_shape: (b, h, w, c) of what is drawn.
    """
    c = components
    if negative_ids is None:
        negative_ids = jnp.broadcast_to(jnp.asarray(c.null_text_ids, text_ids.dtype), text_ids.shape)
    texts = {1: [text_ids], 2: [negative_ids, text_ids], 3: [negative_ids, text_ids, text_ids]}[passes]
    text = c.conditioner(params, jnp.concatenate(texts))
    if tokens is not None:
        spec = c.identity_mapper.spec
        nobody = c.identity_mapper.apply({"params": params["mapper"]}, jnp.zeros((1, spec.num_layers, spec.wplus_dim)))
        absent = jnp.broadcast_to(nobody[:, None], tokens.shape).astype(tokens.dtype)
        tokens = jnp.concatenate([absent] * (passes - 1) + [tokens])
    # Of this call only the projections are used: the rest of the network is never run.
    latents = jnp.zeros((passes * latents_shape[0], *latents_shape[1:]))
    _, filled = c.unet.apply(
        {"params": params["unet"]}, latents, jnp.zeros(len(latents)), text, tokens, mutable=[CONDITIONS]
    )
    return Conditions(text, tokens, filled[CONDITIONS])


def predict(
    components: Components,
    params: Mapping[str, Any],
    conditions: Conditions,
    guidance: Guidance,
    latents: Float[Array, "b h w c"],
    timestep: ArrayLike,
    identity_scale: Array | float = 1.0,
    *,
    passes: Passes = 2,
    normalise_identity: bool = False,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b p h w"]]:
    """The guided prediction, and the map of each person's attention (`merge_attention`), zero without identity.

    identity_scale: () or (b,), or broadcasts to (b, h, w, t) with the tokens of all people in t.

    Raises:
        ValueError: shapes that don't fit the specs or each other.
    """
    c, tokens = components, conditions.tokens
    size, height, width, _ = latents.shape
    repeated = jnp.concatenate([latents] * passes)
    variables = {"params": params["unet"], CONDITIONS: conditions.remembered}
    args = (variables, repeated, jnp.full((len(repeated),), timestep), conditions.text)
    if tokens is None:
        output, heat = c.unet.apply(*args), jnp.zeros((size, 1, height, width))
    else:
        scale = expand_scale(identity_scale, latents.shape, math.prod(tokens.shape[1:3]))
        if len(scale) > 1:  # one per sample: all passes have it
            scale = jnp.concatenate([scale] * passes)
        output, maps = c.unet.apply(*args, tokens, scale, return_attention=True, normalise_identity=normalise_identity)
        own = {path: strength[-size:] for path, strength in maps.items()}
        heat = merge_attention(own, (height, width), tokens.shape[1])
    parts = jnp.split(output, passes)
    if passes == 1:
        return output, heat
    if passes == 2:
        guided = classifier_free(parts[0], parts[1], guidance.scale)
    else:
        guided = with_identity_apart(parts[0], parts[1], parts[2], guidance.scale, guidance.identity)
    return rescale_guidance(guided, parts[-1], guidance.rescale), heat


def merge_attention(
    maps: Mapping[str, Float[Array, "b h w pt"]], size: tuple[int, int], num_people: int = 1
) -> Float[Array, "b p _h _w"]:
    """One map a person from all layers: the person's tokens summed, resized to `size`, each layer's sum over places and
    people made 1, layers averaged."""

    def merged(layer: Float[Array, "b h w pt"]) -> Float[Array, "b p _h _w"]:
        own = layer.reshape(*layer.shape[:3], num_people, -1).sum(-1)
        strength = jax.image.resize(jnp.moveaxis(own, 3, 1), (len(layer), num_people, *size), "nearest")
        return strength / (strength.sum((1, 2, 3), keepdims=True) + 1e-9)

    return add_up(map(merged, maps.values())) / len(maps)
