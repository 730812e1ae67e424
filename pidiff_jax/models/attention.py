"""Attention: one function that picks an implementation, and the UNet's self- and cross-attention built on it."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pidiff_jax.models.layers import Dense

Implementation = Literal["plain", "chunked", "cudnn", "pallas"]

# Above this many query-key pairs per head the matrix of weights isn't kept in memory.
_MAX_PLAIN_PAIRS = 512 * 512
_QUERY_CHUNK = 512
_PALLAS_BLOCK = 128


def dot_product_attention(
    q: Float[Array, "b n d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    *,
    num_heads: int,
    mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n d"]:
    """Multi-head attention, softmax(q k^T / sqrt(e)) v with e = d / num_heads; softmax in float32.

    `mask` is True where a query may attend; None means everywhere. For long sequences no implementation holds the
    (n, m) matrix of all heads, neither forward nor backward; all implementations agree to rounding.

    Raises:
        ValueError: d isn't divisible by `num_heads`.
    """
    if q.shape[-1] % num_heads:
        raise ValueError(
            f"expected a width divisible by num_heads={num_heads}, got {q.shape[-1]}; change the spec's heads or widths"
        )
    chosen = choose_implementation(
        jax.default_backend(), q.shape[1], k.shape[1], q.shape[2] // num_heads, q.dtype, mask is not None
    )
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    if chosen == "cudnn":
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    elif chosen == "pallas":
        out = _pallas_attention(q, k, v)
    elif chosen == "chunked":
        out = chunked_attention(q, k, v, mask)
    else:
        out = plain_attention(q, k, v, mask)
    return out.reshape(*out.shape[:2], -1)


def choose_implementation(
    platform: str, num_queries: int, num_keys: int, head_width: int, dtype: jnp.dtype, masked: bool
) -> Implementation:
    """Picks the implementation for a platform ("cpu", "gpu", "tpu") and shape.

    cuDNN's fused kernel needs half precision and head widths that are multiples of 8 up to 128; the Pallas kernel needs
    sequences in whole blocks and a single device (it can't be partitioned automatically).
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    if platform == "gpu" and half and head_width % 8 == 0 and head_width <= 128:
        return "cudnn"
    if num_queries * num_keys <= _MAX_PLAIN_PAIRS:
        return "plain"
    whole_blocks = num_queries % _PALLAS_BLOCK == 0 and num_keys % _PALLAS_BLOCK == 0
    if platform == "tpu" and whole_blocks and not masked and jax.device_count() == 1:
        return "pallas"
    return "chunked"


def split_heads(x: Float[Array, "b n d"], num_heads: int) -> Float[Array, "b n k e"]:
    """Views the width as heads, head-major as in PyTorch."""
    return x.reshape(*x.shape[:2], num_heads, -1)


def plain_attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n k e"]:
    """The formula as written; holds all weights, which is fastest for short sequences."""
    return jnp.einsum("bknm,bmke->bnke", attention_weights(q, k, mask), v)


def attention_weights(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    mask: Bool[Array, "#b #k #n m"] | None = None,
    sink: bool = False,
) -> Float[Array, "b k n m"]:
    """Softmax weights over the keys; with `sink`, over one more key of logit 0, whose weight isn't returned."""
    logits = jnp.einsum("bnke,bmke->bknm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    if not sink:
        return jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1, keepdims=True), 0.0))
    unnormalised = jnp.exp(logits - top)
    return (unnormalised / (unnormalised.sum(axis=-1, keepdims=True) + jnp.exp(-top))).astype(q.dtype)


def chunked_attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n k e"]:
    """A loop over samples, heads and blocks of queries; weights are recomputed in the backward pass.

    Source: Rabe and Staats 2021 (arXiv 2112.05682), without splitting the keys.
    """
    b, n, num_heads, e = q.shape
    m = k.shape[1]
    size = min(n, _QUERY_CHUNK)
    num_chunks = -(-n // size)
    padding = num_chunks * size - n
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0))) if padding else q
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, num_heads, n, m))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, padding), (0, 0)), constant_values=True)
        mask = mask.reshape(b * num_heads, num_chunks, size, m)

    @jax.checkpoint
    def one_chunk(q_chunk, k_head, v_head, mask_chunk):
        expand = lambda x: None if x is None else x[None, None]  # noqa: E731
        out = plain_attention(q_chunk[None, :, None], k_head[None, :, None], v_head[None, :, None], expand(mask_chunk))
        return out[0, :, 0]

    def one_head(args):
        q_head, k_head, v_head, mask_head = args
        return jax.lax.map(lambda xs: one_chunk(xs[0], k_head, v_head, xs[1]), (q_head, mask_head))

    q_heads = q.transpose(0, 2, 1, 3).reshape(b * num_heads, num_chunks, size, e)
    k_heads, v_heads = (x.transpose(0, 2, 1, 3).reshape(b * num_heads, m, e) for x in (k, v))
    out = jax.lax.map(one_head, (q_heads, k_heads, v_heads, mask))
    return out.reshape(b, num_heads, num_chunks * size, e).transpose(0, 2, 1, 3)[:, :n]


def _pallas_attention(
    q: Float[Array, "b n k e"], k: Float[Array, "b m k e"], v: Float[Array, "b m k e"]
) -> Float[Array, "b n k e"]:
    """The flash attention kernel for TPUs that ships with JAX."""
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention  # imports TPU-only modules

    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5).transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class IdentityAttentionSpec:
    """The identity branch of a UNet's cross-attentions.

    variant: "decoupled" shares the text attention's query (as IP-Adapter); "residual" has its own query, which reads
        the text-attended feature (as w-plus-adapter).
    token_dim: width of the identity tokens.
    sink: adds a key with logit 0 and value 0, so that a position can decline the identity. Without it every position's
        weights sum to 1. An adapter with a sink can't be exported to other projects' formats.
    """

    variant: Literal["decoupled", "residual"] = "decoupled"
    token_dim: int = 768
    sink: bool = False

    def __post_init__(self):
        if self.variant not in ("decoupled", "residual"):
            raise ValueError(
                f"expected variant 'decoupled' or 'residual', got {self.variant!r}; correct the identity spec"
            )


class Conditioning(NamedTuple):
    """What the cross-attentions read. `identity_scale` has one axis each for samples, rows, columns and tokens."""

    text_embeds: Float[Array, "b m d"]
    identity_tokens: Float[Array, "b t d_id"] | None = None
    identity_scale: Float[Array, "#b #h #w #t"] | None = None


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q, k, v = (project(name=f"to_{name}")(x) for name in "qkv")
        out = dot_product_attention(q, k, v, num_heads=self.num_heads)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out)


class CrossAttention(nn.Module):
    """Attention to the text and, where `identity` is given, to identity tokens; one output projection for their sum.

    Source: decoupled: Ye et al. 2023 (arXiv 2308.06721), equation 5; residual: Li et al. 2024 (arXiv 2311.17461),
    section 3.
    """

    num_heads: int
    identity: IdentityAttentionSpec | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        text_embeds: Float[Array, "b m d2"],
        identity_tokens: Float[Array, "b t d_id"] | None = None,
        identity_scale: Float[Array, "#b #n #t"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n t"] | None]:
        """Returns the output and the identity attention's weights, averaged over heads (None without tokens).

        Where `identity_scale` is 0 for all tokens, the output is bitwise that without identity.
        """
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q = project(name="to_q")(x)
        k, v = (project(name=f"to_{name}")(text_embeds) for name in "kv")
        out, weights = dot_product_attention(q, k, v, num_heads=self.num_heads), None
        if self.identity is not None and identity_tokens is None and self.is_initializing():
            identity_tokens = jnp.zeros((x.shape[0], 1, self.identity.token_dim))
        if identity_tokens is not None:
            query = q if self.identity.variant == "decoupled" else project(name="to_q_id")(out)
            out, weights = self._add_identity(out, query, identity_tokens, identity_scale, project)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out), weights

    def _add_identity(self, text_out, query, tokens, scale, project):
        k, v = (project(name=f"to_{name}_id")(tokens) for name in "kv")
        q, k, v = (split_heads(array, self.num_heads) for array in (query, k, v))
        weights = attention_weights(q, k, sink=self.identity.sink)
        if scale is None:
            scaled = weights
        else:
            scaled = weights * scale[:, None].astype(weights.dtype)
        out = text_out + jnp.einsum("bknm,bmke->bnke", scaled, v).reshape(text_out.shape)
        if scale is not None:
            # Selecting, not multiplying: 0 times an overflow would be NaN, and -0 + 0 isn't -0.
            out = jnp.where((scale == 0).all(-1, keepdims=True), text_out, out)
        return out, weights.astype(jnp.float32).mean(1)
