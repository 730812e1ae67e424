"""Identity attention: what a person's tokens add to the text attention, where, and how strongly."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pidiff_jax.kernels.attention import attention_weights, split_heads


def identity_attention(
    text_out: Float[Array, "b n d"],
    query: Float[Array, "b n d"],
    keys: Float[Array, "b t d"],
    values: Float[Array, "b t d"],
    scale: Float[Array, "#b #n #t"] | None = None,
    *,
    num_heads: int,
    sink: bool = False,
    as_long_as: Float[Array, "b n d"] | None = None,
) -> tuple[Float[Array, "b n d"], Float[Array, "b n t"]]:
    """Adds attention to the identity tokens t to the text attention's output; also returns each token's strength.

    For one head, of width e = d / num_heads, at one position of a sample:

        weight_t   = softmax_t(q . k_t / sqrt(e))           over the tokens and, with `sink`, a key of logit 0, value 0
        out        = text_out + sum_t s_t weight_t v_t      side by side for all heads
        strength_t = weight_t |v_t|                         the mean over heads

    The strength of a token is what it can add at a position, before the scale. Weights alone sum to 1 at every position
    (without a sink) and so can't say where the identity acts.

    Args:
        text_out: the text attention's output, heads side by side in d, before the output projection.
        query, keys, values: projected, not split into heads; keys and values of the identity tokens. What the query is a
            projection of is the variant (`IdentityAttentionSpec`).
        scale: s, one value per sample, position and token; axes of size 1 are broadcast. None means 1. Where it is 0 for
            all tokens, the output is `text_out` bit for bit, even for tokens that overflow.
        sink: lets a position decline the identity; its weights then sum to less than 1.
        as_long_as: the values are multiplied so that what they add, before the scale, has the norm of this over all
            positions of a sample: usually the text attention's output, so that a strong identity can't drown the text
            (the rescaling of UniID, arXiv 2512.03964, for drawing; nothing is trained with it).

    Returns:
        The output, and the strength in float32.

    Example:
        >>> text_out, query = jnp.zeros((1, 2, 4)), jnp.ones((1, 2, 4))  # 2 positions
        >>> keys, values = jnp.zeros((1, 1, 4)), jnp.ones((1, 1, 4))  # 1 token, whose logit is the sink's: weight 1/2
        >>> only_first = jnp.array([1.0, 0.0]).reshape(1, 2, 1)
        >>> out, strength = identity_attention(text_out, query, keys, values, only_first, num_heads=2, sink=True)
        >>> out[0, :, 0]
        Array([0.5, 0. ], dtype=float32)
        >>> strength[0, :, 0].round(3)
        Array([0.707, 0.707], dtype=float32)

    Source: decoupled: Ye et al. 2023 (arXiv 2308.06721), equation 5; residual: Li et al. 2024 (arXiv 2311.17461), section 3;
    strength: Kobayashi et al. 2020 (arXiv 2004.10102), section 3.
    """
    q, k, v = (split_heads(array, num_heads) for array in (query, keys, values))
    weights = attention_weights(q, k, sink=sink)
    if as_long_as is not None:
        v = v * _ratio_of_norms(as_long_as, jnp.einsum("bknt,btke->bnke", weights, v))
    scaled = weights if scale is None else weights * scale[:, None].astype(weights.dtype)
    out = text_out + jnp.einsum("bknt,btke->bnke", scaled, v).reshape(text_out.shape)
    if scale is not None:
        # Selecting, not multiplying: 0 times an overflow would be NaN, and -0 + 0 isn't -0.
        out = jnp.where((scale == 0).all(-1, keepdims=True), text_out, out)
    # The root's derivative at 0 is infinite.
    norms = jnp.sqrt(jnp.square(v.astype(jnp.float32)).sum(-1) + 1e-12)
    return out, jnp.einsum("bknt,btk->bnt", weights.astype(jnp.float32), norms) / num_heads


def _ratio_of_norms(wanted: Float[Array, "b n d"], found: Float[Array, "b n k e"]) -> Float[Array, "b 1 1 1"]:
    norms = [jnp.linalg.norm(x.astype(jnp.float32).reshape(len(x), -1), axis=1) for x in (wanted, found)]
    return (norms[0] / jnp.maximum(norms[1], 1e-12)).reshape(-1, 1, 1, 1).astype(found.dtype)
