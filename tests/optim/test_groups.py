"""Every group is trained with its own rate and decay; frozen parameters have no optimizer state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pidiff_jax.optim.groups import GroupSpec, make_optimizer
from pidiff_jax.optim.rules import ParameterRule, assign_groups, split

PARAMS = {
    "a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "b": {"kernel": jnp.ones((2, 2))},
    "c": {"kernel": jnp.ones(3)},
}
GROUPS = assign_groups(
    [ParameterRule("^a", "slow"), ParameterRule("^b", "fast"), ParameterRule(".*", "frozen")], PARAMS
)


def one_update(optimizer, gradient):
    trainable, _ = split(PARAMS, GROUPS)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), trainable)
    return optimizer.update(gradients, optimizer.init(trainable), trainable)[0]


def test_each_group_has_its_own_learning_rate():
    updates = one_update(make_optimizer(GROUPS, {"slow": GroupSpec(1e-3), "fast": GroupSpec(1e-1)}, 10), 2.0)
    # Adam's first update is the learning rate against the sign of the gradient.
    np.testing.assert_allclose(updates["a"]["kernel"], -1e-3, rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["kernel"], -1e-1, rtol=1e-5)


def test_each_group_has_its_own_weight_decay_and_biases_have_none():
    specs = {"slow": GroupSpec(1e-3, weight_decay=0.5), "fast": GroupSpec(1e-1)}
    updates = one_update(make_optimizer(GROUPS, specs, 10), 0.0)
    np.testing.assert_allclose(updates["a"]["kernel"], -1e-3 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["a"]["bias"], 0.0)
    np.testing.assert_array_equal(updates["b"]["kernel"], 0.0)


def test_one_group_is_the_same_as_optax_adamw():
    groups = jax.tree.map(lambda _: "all", PARAMS)
    ours = make_optimizer(groups, {"all": GroupSpec(1e-2, weight_decay=0.1)}, 10, clip_norm=0.5)
    decayed = jax.tree.map(lambda x: x.ndim > 1, PARAMS)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1, mask=decayed))
    states, params = [ours.init(PARAMS), theirs.init(PARAMS)], [PARAMS, PARAMS]
    for step in range(3):
        for i, optimizer in enumerate((ours, theirs)):
            gradients = jax.tree.map(lambda x, offset=step + 3: jnp.cos(x * offset), params[i])
            updates, states[i] = optimizer.update(gradients, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)


def test_muon_updates_every_direction_of_a_matrix_alike_at_adamws_size():
    rng = np.random.default_rng(0)
    # A gradient whose directions differ by a factor of 30, as those behind W+ codes do.
    u, v = (np.linalg.qr(rng.normal(size=(24, 24)))[0] for _ in range(2))
    params = {"kernel": jnp.zeros((24, 24)), "bias": jnp.zeros(24)}
    gradients = {"kernel": jnp.asarray(u * np.geomspace(1.0, 1 / 30, 24) @ v, jnp.float32), "bias": jnp.ones(24)}
    optimizer = make_optimizer({"kernel": "all", "bias": "all"}, {"all": GroupSpec(1e-2, optimizer="muon")}, 10)
    updates = optimizer.update(gradients, optimizer.init(params), params)[0]
    strengths = np.linalg.svd(updates["kernel"], compute_uv=False)
    assert strengths.max() / strengths.min() < 3.0
    assert np.sqrt(np.square(updates["kernel"]).mean()) == pytest.approx(0.2 * 1e-2, rel=0.3)
    assert np.all(updates["bias"] < 0)


def test_groups_may_use_different_optimizers():
    specs = {"slow": GroupSpec(1e-3, optimizer="muon", weight_decay=0.5), "fast": GroupSpec(1e-1)}
    updates = one_update(make_optimizer(GROUPS, specs, 10), 2.0)
    np.testing.assert_allclose(updates["b"]["kernel"], -1e-1, rtol=1e-5)
    decay_only = one_update(make_optimizer(GROUPS, specs, 10), 0.0)
    np.testing.assert_allclose(decay_only["a"]["kernel"], -1e-3 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(decay_only["a"]["bias"], 0.0)


def test_the_decay_that_is_due_reaches_every_group_with_its_own_schedule():
    specs = {
        "slow": GroupSpec(1e-3, optimizer="muon", schedule="linear"),
        "fast": GroupSpec(1e-1, schedule="linear", end_factor=0.2),
    }
    optimizer = make_optimizer(GROUPS, specs, 10)
    trainable, _ = split(PARAMS, GROUPS)
    gradients, state = jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable)
    update = jax.jit(lambda due_step: optimizer.update(gradients, state, trainable, due_step)[0])
    whole, half, ended = update(0.0), update(5.0), update(10.0)
    for group, parts in (("a", (0.5, 0.0)), ("b", (0.6, 0.2))):  # Muon's matrix and its bias, AdamW's matrix
        for found, part in zip((half, ended), parts, strict=True):
            jax.tree.map(
                lambda x, y, p=part: np.testing.assert_allclose(x, p * y, rtol=1e-5), found[group], whole[group]
            )


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match=r"expected an optimizer of \['adamw', 'muon'\], got 'sgd'"):
        GroupSpec(1e-3, optimizer="sgd")


def test_frozen_parameters_have_no_optimizer_state():
    optimizer = make_optimizer(GROUPS, {"slow": GroupSpec(1e-3), "fast": GroupSpec(1e-1)}, 10)
    sizes = [x.size for x in jax.tree.leaves(optimizer.init(split(PARAMS, GROUPS)[0]))]
    assert sum(sizes) == 2 * (4 + 2 + 4) + 4  # two moments, and two counters per group


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"slow": GroupSpec(1e-3)}, "the difference is fast"),
        ({"slow": GroupSpec(1.0), "fast": GroupSpec(1.0), "quick": GroupSpec(1.0)}, "the difference is quick"),
        ({"slow": GroupSpec(1.0), "fast": GroupSpec(1.0), "frozen": GroupSpec(1.0)}, "no spec for the group 'frozen'"),
    ],
)
def test_groups_and_specs_must_agree(specs, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(GROUPS, specs, 10)


def test_training_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one parameter to train"):
        make_optimizer(jax.tree.map(lambda _: "frozen", PARAMS), {}, 10)
