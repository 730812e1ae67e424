"""Attention: one function that picks the implementation for a platform and shape."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pidiff_jax.kernels.chunked_attention import chunked_attention
from pidiff_jax.kernels.platform import target_platform

Implementation = Literal["plain", "chunked", "cudnn", "pallas"]

# Above this many query-key pairs per head the matrix of weights isn't kept in memory.
_MAX_PLAIN_PAIRS = 512 * 512
# Few keys, as of a text or an identity. XLA's CPU compiler fuses the plain formula into one slow kernel where there are more:
# eight times slower than the loop at 256 x 256, and even with it at 64 x 64. On an H100, 4096 queries of 40 keys take the
# plain formula .9 of the time of cuDNN's kernel forward, .6 of it with gradients (benchmarks/attention.py).
_FEW_KEYS = 128
# On a GPU few keys are worked through plainly up to so many queries.
_MAX_PLAIN_QUERIES_GPU = 4096
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
    matrix of all heads where both are long, neither forward nor backward. All agree to rounding.

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

    cuDNN's fused kernel needs half precision, head widths that are multiples of 8 up to 128 and, to be differentiated, even
    numbers of queries and keys; the Pallas kernel needs sequences in whole blocks and head widths up to its 128 lanes or a
    multiple of them.
    """
    half, few_keys = dtype in (jnp.bfloat16, jnp.float16), num_keys <= _FEW_KEYS
    if masked:
        return "plain"
    if platform == "gpu" and few_keys and num_queries <= _MAX_PLAIN_QUERIES_GPU:
        return "plain"
    even = num_queries % 2 == 0 and num_keys % 2 == 0
    if platform == "gpu" and half and even and head_width % 8 == 0 and head_width <= 128:
        return "cudnn"
    if num_queries * num_keys <= _MAX_PLAIN_PAIRS and (platform != "cpu" or few_keys):
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
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # heads first
    return kernel(q, k, v).swapaxes(1, 2)
