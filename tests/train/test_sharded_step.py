"""The same training on one device and on eight, however the mesh divides them."""

import jax
import numpy as np
import pytest

from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train.step import compile_train_step, make_train_step
from tests.train.tiny_training import LOSS_WEIGHTS, loss_fn, make_batch, start

NUM_STEPS = 4


def train(mesh, accumulate_steps=1):
    state, frozen, optimizer = start(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        loss_fn, optimizer, loss_weights=LOSS_WEIGHTS, ema_decay=0.9, seed=3, accumulate_steps=accumulate_steps
    )
    compiled = compile_train_step(step, state, frozen, make_batch(0), mesh)
    for index in range(NUM_STEPS):
        state, metrics = compiled(state, frozen, shard_batch(make_batch(index), mesh))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return jax.tree.map(np.asarray, (state.trainable, state.ema, metrics))


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)


@pytest.fixture(scope="module")
def on_one_device():
    return train(make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"fsdp": 8}, {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=lambda sizes: "-".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_eight_devices_train_as_one(on_one_device, sizes):
    assert_close(train(make_mesh(sizes)), on_one_device)


def test_eight_devices_accumulate_as_one():
    on_one = train(make_mesh(devices=jax.devices()[:1]), accumulate_steps=2)
    assert_close(train(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), accumulate_steps=2), on_one)


def test_moments_and_averages_lie_where_their_parameter_lies():
    state, _, _ = start(make_mesh({"fsdp": 4, "tensor": 2}))
    spec = state.trainable["identity"]["kernel"].sharding.spec
    assert spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    same_shape = [x for x in jax.tree.leaves((state.ema, state.opt_state)) if x.shape == (16, 32)]
    assert len(same_shape) == 3
    assert all(x.sharding.spec == spec for x in same_shape)
