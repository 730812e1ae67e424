"""All attention implementations compute the same function, and none keeps the weights of long sequences."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pidiff_jax.kernels.attention import (
    attention_weights,
    choose_implementation,
    dot_product_attention,
    pallas_attention,
    plain_attention,
)
from pidiff_jax.kernels.chunked_attention import chunked_attention


def heads(n, m, num_heads=2, width=8, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((batch, size, num_heads, width)), jnp.float32) for size in (n, m, m)]


@pytest.mark.parametrize(("n", "m"), [(1024, 96), (700, 130), (30, 40)])
def test_chunked_agrees_with_plain_forward_and_backward(n, m):
    arrays = heads(n, m)

    def value_and_gradients(attention):
        return jax.jit(jax.value_and_grad(lambda qkv: jnp.sin(attention(*qkv)).sum()))(arrays)

    results = (jax.tree.leaves(value_and_gradients(fn)) for fn in (chunked_attention, plain_attention))
    for chunked, plain in zip(*results, strict=True):
        np.testing.assert_allclose(chunked, plain, rtol=1e-5, atol=1e-5)


def test_long_sequences_never_hold_all_weights():
    n, num_heads, width = 2048, 8, 16
    shape = jax.ShapeDtypeStruct((1, n, num_heads * width), jnp.float32)
    attention = lambda q, k, v: dot_product_attention(q, k, v, num_heads=num_heads).sum()  # noqa: E731
    all_weights = n * n * num_heads * 4
    for fn in (attention, jax.grad(attention, (0, 1, 2))):
        memory = jax.jit(fn).lower(shape, shape, shape).compile().memory_analysis()
        assert memory.temp_size_in_bytes < all_weights / 4


def test_masked_keys_have_no_influence():
    q, k, v = (x.reshape(2, x.shape[1], -1) for x in heads(5, 6))
    mask = jnp.arange(6)[None, None, None] < 4
    out = dot_product_attention(q, k, v, num_heads=2, mask=mask)
    changed = dot_product_attention(q, k.at[:, 4:].add(3), v.at[:, 4:].add(3), num_heads=2, mask=mask)
    np.testing.assert_array_equal(out, changed)
    np.testing.assert_allclose(out, dot_product_attention(q, k[:, :4], v[:, :4], num_heads=2), atol=1e-6)


def test_a_sink_is_a_key_with_logit_zero():
    q, k, _ = heads(7, 3)
    with_zero_key = attention_weights(q, jnp.pad(k, ((0, 0), (0, 1), (0, 0), (0, 0))))
    np.testing.assert_allclose(attention_weights(q, k, sink=True), with_zero_key[..., :3], atol=1e-6)
    assert np.isfinite(attention_weights(100 * q, 100 * k, sink=True)).all()


def test_the_choice_follows_platform_and_shape():
    choose = choose_implementation
    assert choose("cpu", 1024, 77, 40, jnp.float32, False) == "plain"
    assert choose("cpu", 256, 256, 40, jnp.float32, False) == "chunked"
    assert choose("cpu", 4096, 4096, 40, jnp.float32, False) == "chunked"
    assert choose("gpu", 4096, 4096, 40, jnp.bfloat16, False) == "cudnn"
    assert choose("gpu", 4096, 4096, 160, jnp.bfloat16, False) == "chunked"
    assert (
        choose("gpu", 4096, 77, 40, jnp.bfloat16, False) == "plain"
    )  # cuDNN's kernel has no gradient for an odd number
    assert choose("gpu", 4097, 4097, 40, jnp.bfloat16, False) == "chunked"
    assert choose("gpu", 16384, 77, 40, jnp.bfloat16, False) == "chunked"
    assert choose("gpu", 16384, 40, 40, jnp.bfloat16, False) == "cudnn"
    assert choose("gpu", 4096, 4096, 40, jnp.float32, False) == "chunked"
    assert choose("tpu", 4096, 4096, 40, jnp.bfloat16, False) == "pallas"
    assert choose("tpu", 4096, 4096, 160, jnp.bfloat16, False) == "chunked"
    assert choose("tpu", 4000, 4000, 40, jnp.bfloat16, False) == "chunked"
    assert choose("gpu", 256, 256, 40, jnp.float32, False) == "plain"
    assert choose("tpu", 256, 77, 40, jnp.bfloat16, False) == "plain"


@pytest.mark.parametrize("mesh_shape", [None, (2, 1, 2), (3, 1, 1)])
def test_the_tpu_kernel_agrees_also_on_a_mesh(mesh_shape):
    arrays = heads(256, 128, num_heads=2, batch=2)
    mesh = None
    if mesh_shape is not None:
        devices = np.array(jax.devices()[: np.prod(mesh_shape)]).reshape(mesh_shape)
        mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    with pltpu.force_tpu_interpret_mode(), contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        out = jax.jit(pallas_attention)(*arrays)
    np.testing.assert_allclose(out, plain_attention(*arrays), atol=1e-5)


def test_widths_that_heads_do_not_divide_are_refused():
    x = jnp.zeros((1, 4, 10))
    with pytest.raises(ValueError, match="num_heads=3"):
        dot_product_attention(x, x, x, num_heads=3)
