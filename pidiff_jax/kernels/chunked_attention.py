"""Attention that never holds the weights of all queries, on every platform and in both directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pidiff_jax.kernels.platform import target_platform

# Queries at a time. Elsewhere than on a CPU, which works through one head after another, this is held for all heads.
_QUERY_CHUNK, _QUERY_CHUNK_CPU = 256, 512


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
    n = x.shape[2]
    size = min(n, _QUERY_CHUNK_CPU if target_platform() == "cpu" else _QUERY_CHUNK)
    num_chunks = -(-n // size)
    x = jnp.pad(x, [(0, num_chunks * size - n if axis == 2 else 0) for axis in range(x.ndim)])
    return x.reshape(*x.shape[:2], num_chunks, size, *x.shape[3:])


def _from_chunks(x: Float[Array, "b k chunks size e"], n: int) -> Float[Array, "b k n e"]:
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n]
