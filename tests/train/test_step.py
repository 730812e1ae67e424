"""The pure step: what it changes, what it leaves, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import from_first_process, shard_batch
from pidiff_jax.train.state import init_state
from pidiff_jax.train.step import compile_evaluate_losses, compile_train_step, evaluate_losses, make_train_step
from tests.train.tiny_training import LOSS_WEIGHTS, loss_fn, make_batch, start


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1}, jax.devices()[:1])


def make(optimizer, loss=loss_fn, **options):
    return make_train_step(loss, optimizer, **{"loss_weights": LOSS_WEIGHTS, "ema_decay": 0.9, "seed": 3, **options})


def bits(tree):
    return jax.tree.map(lambda x: np.array(x).view(np.uint32), tree)


def test_frozen_parameters_keep_every_bit_and_trainable_ones_move(mesh):
    state, frozen, optimizer = start(mesh)
    frozen_before = bits(frozen)
    before = jax.tree.map(np.array, state.trainable)
    step = compile_train_step(make(optimizer), state, frozen, make_batch(0), mesh)
    for index in range(3):
        state, _ = step(state, frozen, shard_batch(make_batch(index), mesh), from_first_process(0.0, mesh))
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, bits(frozen), frozen_before)
    assert jax.tree.all(jax.tree.map(lambda a, b: not np.array_equal(a, b), state.trainable, before))


def test_the_state_owns_its_buffers(mesh):
    given, _, optimizer = start(mesh)
    state = init_state(given.trainable, optimizer, ema=True)
    leaves = [x for tree in (given.trainable, state.trainable, state.ema) for x in jax.tree.leaves(tree)]
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_the_state_is_donated_and_nothing_else(mesh):
    state, frozen, optimizer = start(mesh)
    batch = shard_batch(make_batch(0), mesh)
    step = compile_train_step(make(optimizer), state, frozen, batch, mesh)
    after, metrics = step(state, frozen, batch, from_first_process(0.0, mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves((frozen, batch, after, metrics)))


def test_the_average_follows_its_formula(mesh):
    state, frozen, optimizer = start(mesh)
    expected = jax.tree.map(np.array, state.ema)
    step = jax.jit(make(optimizer))
    for index, decay in enumerate((0.1, 2 / 11, 0.25)):
        state, _ = step(state, frozen, make_batch(index))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.array(new), expected, state.trainable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, expected)


def test_without_an_average_the_state_has_none(mesh):
    state, frozen, optimizer = start(mesh)
    state, _ = jax.jit(make(optimizer, ema_decay=None))(state.replace(ema=None), frozen, make_batch(0))
    assert state.ema is None


def test_the_metrics_are_the_weighted_mean_and_the_norms_and_rates_of_every_group(mesh):
    state, frozen, optimizer = start(mesh)
    _, metrics = jax.jit(make(optimizer))(state, frozen, make_batch(0))
    per_group = {
        f"{kind}/{group}" for kind in ("grad_norm", "param_norm", "learning_rate") for group in ("identity", "mapper")
    }
    assert set(metrics) == {"loss", "loss/denoising", "loss/localisation", "noise_mean"} | per_group
    assert all(value.shape == () for value in metrics.values())
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss/denoising"] + 0.5 * metrics["loss/localisation"], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["learning_rate/mapper"], 1.5e-3, rtol=1e-6)


def test_every_step_draws_other_random_numbers_and_the_same_step_the_same(mesh):
    state, frozen, optimizer = start(mesh)
    step, batch = jax.jit(make(optimizer)), make_batch(0)
    noises = [float(step(state.replace(step=jnp.int32(s)), frozen, batch)[1]["noise_mean"]) for s in (0, 1, 0)]
    assert noises[0] == noises[2] != noises[1]


def deterministic_loss(params, batch, key, train):
    values, _ = loss_fn(params, batch, key, train=False)
    return values, {}


def test_accumulating_over_parts_is_the_same_as_one_large_batch(mesh):
    state, frozen, optimizer = start(mesh)
    whole, metrics = jax.jit(make(optimizer, deterministic_loss))(state, frozen, make_batch(0))
    parts, part_metrics = jax.jit(make(optimizer, deterministic_loss, accumulate_steps=4))(state, frozen, make_batch(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.trainable, parts.trainable)
    np.testing.assert_allclose(metrics["loss"], part_metrics["loss"], rtol=1e-6)


def test_a_batch_that_the_parts_do_not_divide_is_an_error(mesh):
    state, frozen, optimizer = start(mesh)
    with pytest.raises(ValueError, match="divisible by accumulate_steps=3, got 8"):
        make(optimizer, accumulate_steps=3)(state, frozen, make_batch(0))


@pytest.mark.parametrize("weights", [{"denoising": 1.0}, {**LOSS_WEIGHTS, "preserve": 0.1}])
def test_losses_and_weights_must_agree(mesh, weights):
    state, frozen, optimizer = start(mesh)
    with pytest.raises(ValueError, match="correct the names of the weights"):
        make(optimizer, loss_weights=weights)(state, frozen, make_batch(0))


def test_a_loss_that_is_reduced_already_is_an_error(mesh):
    state, frozen, optimizer = start(mesh)
    with pytest.raises(ValueError, match=r"per-example values \(b,\), got {'denoising': \(\)}"):
        make(optimizer, lambda *_, train: ({"denoising": jnp.zeros(())}, {}), loss_weights={"denoising": 1.0})(
            state, frozen, make_batch(0)
        )


def test_evaluation_is_compiled_without_donation_and_with_train_off(mesh):
    state, frozen, _ = start(mesh)
    batch = shard_batch(make_batch(5), mesh)
    compiled = compile_evaluate_losses(loss_fn, LOSS_WEIGHTS, state.trainable, frozen, batch, mesh)
    metrics = compiled(state.trainable, frozen, batch, jax.random.key(1))
    expected = evaluate_losses(loss_fn, LOSS_WEIGHTS, state.trainable, frozen, batch, jax.random.key(2))
    assert float(metrics["noise_mean"]) == 0.0
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
