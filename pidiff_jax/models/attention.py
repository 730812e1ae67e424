"""Attention: one function that picks an implementation, and the UNet's self- and cross-attention built on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pidiff_jax.kernels.platform import target_platform
from pidiff_jax.models.layers import Dense

Implementation = Literal["plain", "chunked", "cudnn", "pallas"]

# Above this many query-key pairs per head the matrix of weights isn't kept in memory.
_MAX_PLAIN_PAIRS = 512 * 512
# XLA's CPU compiler fuses the plain formula into one slow kernel where there are more keys than this: eight times slower
# than the loop at 256 x 256, and even with it at 64 x 64.
_MAX_PLAIN_KEYS_CPU = 128
_QUERY_CHUNK = 256
_LANES = 128
# The mesh axis that heads are split over; samples are split over all others.
_HEADS_MESH_AXIS = "tensor"


def dot_product_attention(
    q: Float[Array, "b n d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    *,
    num_heads: int,
    mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n d"]:
    """Multi-head attention, softmax(q k^T / sqrt(e)) v with e = d / num_heads; softmax in float32.

    `mask` is True where a query may attend; None means everywhere. Without a mask no implementation holds the (n, m)
    matrix of all heads for long sequences, neither forward nor backward. All agree to rounding.

    Raises:
        ValueError: d isn't divisible by `num_heads`.
    """
    if q.shape[-1] % num_heads:
        raise ValueError(
            f"expected a width divisible by num_heads={num_heads}, got {q.shape[-1]}; change the spec's heads or widths"
        )
    chosen = choose_implementation(
        target_platform(), q.shape[1], k.shape[1], q.shape[2] // num_heads, q.dtype, mask is not None
    )
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    if chosen == "cudnn":
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    elif chosen == "pallas":
        out = pallas_attention(q, k, v)
    elif chosen == "chunked":
        out = chunked_attention(q, k, v)
    else:
        out = plain_attention(q, k, v, mask)
    return out.reshape(*out.shape[:2], -1)


def choose_implementation(
    platform: str, num_queries: int, num_keys: int, head_width: int, dtype: DTypeLike, masked: bool
) -> Implementation:
    """Picks the implementation for a platform ("cpu", "gpu", "tpu") and shape.

    cuDNN's fused kernel needs half precision and head widths that are multiples of 8 up to 128; the Pallas kernel needs
    sequences in whole blocks and head widths up to its 128 lanes or a multiple of them.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    if masked:
        return "plain"
    if platform == "gpu" and half and head_width % 8 == 0 and head_width <= 128:
        return "cudnn"
    if num_queries * num_keys <= _MAX_PLAIN_PAIRS and (platform != "cpu" or num_keys <= _MAX_PLAIN_KEYS_CPU):
        return "plain"
    whole_blocks = num_queries % _LANES == 0 and num_keys % _LANES == 0
    if platform == "tpu" and whole_blocks and (head_width <= _LANES or head_width % _LANES == 0):
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
    # The keys are scaled, not the queries, of which backward would then keep a second copy.
    logits = jnp.einsum("bnke,bmke->bknm", q, k * k.shape[-1] ** -0.5, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    if not sink:
        return jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1, keepdims=True), 0.0))
    unnormalised = jnp.exp(logits - top)
    return (unnormalised / (unnormalised.sum(axis=-1, keepdims=True) + jnp.exp(-top))).astype(q.dtype)


@jax.custom_vjp
def chunked_attention(
    q: Float[Array, "b n k e"], k: Float[Array, "b m k e"], v: Float[Array, "b m k e"]
) -> Float[Array, "b n k e"]:
    """Attention in blocks of queries; the backward pass recomputes the weights from the saved log-normalisers.

    Source: Rabe and Staats 2021 (arXiv 2112.05682), without splitting the keys; backward pass: Dao et al. 2022
    (arXiv 2205.14135), algorithm 4.
    """
    return _chunked_forward(q, k, v)[0]


def _chunked_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    n, e = q.shape[1], q.shape[3]

    def one_head(args):
        q_chunks, k, v = args
        k_t = _transposed_copy(k)

        def one_chunk(q):
            logits = jnp.matmul(q, k_t, preferred_element_type=jnp.float32)
            top = logits.max(axis=-1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = weights.sum(axis=-1, keepdims=True)
            out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
            return out.astype(v.dtype), (top + jnp.log(total))[:, 0]

        return jax.lax.map(one_chunk, q_chunks)

    out, log_total = _over_heads(one_head, (_in_chunks(_heads_first(q) * e**-0.5), _heads_first(k), _heads_first(v)))
    out = _heads_last(_from_chunks(out, n))
    return out, (q, k, v, out, log_total)


def _chunked_backward(residuals: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_total = residuals
    n, scale = q.shape[1], q.shape[3] ** -0.5
    overlap = jnp.einsum("bnke,bnke->bkn", out.astype(jnp.float32), d_out.astype(jnp.float32))
    q_chunks, d_chunks = _in_chunks(_heads_first(q) * scale), _in_chunks(_heads_first(d_out))
    chunks = (q_chunks, d_chunks, log_total, _in_chunks(overlap))

    def one_head(args):
        chunks, k, v = args
        k_t, v_t = _transposed_copy(k), _transposed_copy(v)

        def one_chunk(sums, chunk):
            q, d_out, log_total, overlap = chunk
            weights = jnp.exp(jnp.matmul(q, k_t, preferred_element_type=jnp.float32) - log_total[:, None])
            d_weights = jnp.matmul(d_out, v_t, preferred_element_type=jnp.float32)
            d_logits = (weights * (d_weights - overlap[:, None])).astype(k.dtype)
            d_k = jnp.matmul(_transposed_copy(q), d_logits, preferred_element_type=jnp.float32)
            d_v = jnp.matmul(_transposed_copy(d_out), weights.astype(k.dtype), preferred_element_type=jnp.float32)
            return (sums[0] + d_k, sums[1] + d_v), jnp.matmul(d_logits, k)

        zeros = jnp.zeros(k_t.shape, jnp.float32)
        (d_k, d_v), d_q = jax.lax.scan(one_chunk, (zeros, zeros), chunks)
        return d_q, d_k, d_v

    d_q, d_k, d_v = _over_heads(one_head, (chunks, _heads_first(k), _heads_first(v)))
    d_q = _heads_last(_from_chunks(d_q, n)) * scale
    return d_q, *(_heads_last(x.swapaxes(-1, -2)).astype(k.dtype) for x in (d_k, d_v))


chunked_attention.defvjp(_chunked_forward, _chunked_backward)


def _transposed_copy(x: Float[Array, "n e"]) -> Float[Array, "e n"]:
    """The CPU's matrix product is four times slower with a transposed left operand; the barrier keeps the compiler from it."""
    return jax.lax.optimization_barrier(x.T)


def _over_heads(one_head: Callable, arrays: Any) -> Any:
    """Applies a function of one head: on a CPU to one after another, which keeps a head's arrays in its cache.

    Elsewhere to all at once, which leaves samples and heads free to be spread over a mesh.
    """
    if target_platform() != "cpu":
        return jax.vmap(jax.vmap(one_head))(arrays)
    b, num_heads = jax.tree.leaves(arrays)[0].shape[:2]
    heads = jax.tree.map(lambda x: x.reshape(b * num_heads, *x.shape[2:]), arrays)
    first = jax.tree.map(lambda x: x[0], heads)

    # Like `jax.lax.map`, whose results start as zeros: those depend on nothing, and XLA makes the zeros of all layers when
    # the program starts. What is copied here is overwritten.
    def store(index, results):
        result = one_head(jax.tree.map(lambda x: x[index], heads))
        return jax.tree.map(lambda all_heads, one: all_heads.at[index].set(one), results, result)

    any_value = jax.tree.leaves(first)[0].ravel()[0]
    results = jax.tree.map(
        lambda x: jnp.broadcast_to(any_value.astype(x.dtype), (b * num_heads, *x.shape)),
        jax.eval_shape(one_head, first),
    )
    results = jax.lax.fori_loop(0, b * num_heads, store, results)
    return jax.tree.map(lambda x: x.reshape(b, num_heads, *x.shape[1:]), results)


def _heads_first(x: Float[Array, "b n k e"]) -> Float[Array, "b k n e"]:
    return x.swapaxes(1, 2)


def _heads_last(x: Float[Array, "b k n e"]) -> Float[Array, "b n k e"]:
    return x.swapaxes(1, 2)


def _in_chunks(x: Float[Array, "b k n ..."]) -> Float[Array, "b k chunks size ..."]:
    """Splits the queries into chunks, the last padded with zeros."""
    n, size = x.shape[2], min(x.shape[2], _QUERY_CHUNK)
    num_chunks = -(-n // size)
    x = jnp.pad(x, [(0, num_chunks * size - n if axis == 2 else 0) for axis in range(x.ndim)])
    return x.reshape(*x.shape[:2], num_chunks, size, *x.shape[3:])


def _from_chunks(x: Float[Array, "b k chunks size e"], n: int) -> Float[Array, "b k n e"]:
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n]


def pallas_attention(
    q: Float[Array, "b n k e"], k: Float[Array, "b m k e"], v: Float[Array, "b m k e"]
) -> Float[Array, "b n k e"]:
    """The flash attention kernel for TPUs that ships with JAX, each device on its own samples and heads.

    The compiler can't partition a kernel by itself, hence the `shard_map` over the mesh that is set; where the mesh
    doesn't divide samples or heads, every device computes them all.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as flash  # imports what only TPU builds need

    def size(length: int) -> int:
        return next(block for block in (512, 256, _LANES) if length % block == 0)

    block_q, block_k = size(q.shape[1]), size(k.shape[1])
    blocks = flash.BlockSizes(
        block_q, block_k, block_k, 1, block_q, block_k, block_k, block_q, block_k, block_k, block_q
    )  # fmt: skip

    def kernel(q, k, v):
        return flash.flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=blocks)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        batch_axes = tuple(axis for axis in mesh.axis_names if axis != _HEADS_MESH_AXIS)
        splits_batch = q.shape[0] % math.prod(mesh.shape[axis] for axis in batch_axes) == 0
        splits_heads = q.shape[2] % mesh.shape.get(_HEADS_MESH_AXIS, 1) == 0 and _HEADS_MESH_AXIS in mesh.axis_names
        spec = PartitionSpec(batch_axes if splits_batch else None, _HEADS_MESH_AXIS if splits_heads else None)
        kernel = jax.shard_map(kernel, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return _heads_last(kernel(*(_heads_first(x) for x in (q, k, v))))


@dataclass(frozen=True)
class IdentityAttentionSpec:
    """The identity branch of a UNet's cross-attentions.

    variant: "decoupled" shares the text attention's query (as IP-Adapter); "independent" has its own query, which reads
        what the text attention's reads; "residual" has its own query, which reads the text-attended feature (as
        w-plus-adapter).
    token_dim: width of the identity tokens.
    sink: adds a key with logit 0 and value 0, so that a position can decline the identity. Without it every position's
        weights sum to 1.

    An "independent" adapter, or one with a sink, can't be exported to other projects' formats.
    """

    variant: str = "decoupled"
    token_dim: int = 768
    sink: bool = False

    def __post_init__(self):
        if self.variant not in ("decoupled", "independent", "residual"):
            raise ValueError(
                f"expected variant 'decoupled', 'independent' or 'residual', got {self.variant!r}; correct the identity "
                "spec"
            )


class Conditioning(NamedTuple):
    """What the cross-attentions read. `identity_scale` has one axis each for samples, rows, columns and tokens."""

    text_embeds: Float[Array, "b m d"]
    identity_tokens: Float[Array, "b t d_id"] | None = None
    identity_scale: Float[Array, "#b #h #w #t"] | None = None


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

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
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        text_embeds: Float[Array, "b m d2"],
        identity_tokens: Float[Array, "b t d_id"] | None = None,
        identity_scale: Float[Array, "#b #n #t"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n t"] | None]:
        """Returns the output and the identity attention's strength, averaged over heads (None without tokens).

        The strength of a token at a position is its attention weight times the norm of its value: what it can add there.
        Weights alone sum to 1 at every position and so can't say where the identity acts.
        Source: Kobayashi et al. 2020 (arXiv 2004.10102), section 3.

        Where `identity_scale` is 0 for all tokens, the output is bitwise that without identity.
        """
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q = project(name="to_q")(x)
        k, v = (project(name=f"to_{name}")(text_embeds) for name in "kv")
        out, strength = dot_product_attention(q, k, v, num_heads=self.num_heads), None
        if self.identity is not None and identity_tokens is None and self.is_initializing():
            identity_tokens = jnp.zeros((x.shape[0], 1, self.identity.token_dim))
        if identity_tokens is not None:
            if self.identity.variant == "decoupled":
                query = q
            else:
                query = project(name="to_q_id")(x if self.identity.variant == "independent" else out)
            out, strength = self._add_identity(out, query, identity_tokens, identity_scale, project)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out), strength

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
        norms = jnp.sqrt(jnp.square(v.astype(jnp.float32)).sum(-1) + 1e-12)
        return out, jnp.einsum("bknt,btk->bnt", weights.astype(jnp.float32), norms) / self.num_heads
