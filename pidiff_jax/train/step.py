"""The training step as a pure function, and its compilation for a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.losses.reduce import reduce_losses
from pidiff_jax.optim.ema import decay_at, update_ema
from pidiff_jax.optim.groups import GroupedOptimizer
from pidiff_jax.optim.rules import merge
from pidiff_jax.paths import flatten
from pidiff_jax.sharding.rules import DEFAULT_RULES, AxisRules, batch_structs, replicated
from pidiff_jax.train.state import TrainState

Batch = Mapping[str, Any]
Metrics = dict[str, Array]
# (params, batch, key, train) -> ({name: per-example values (b,)}, {name: scalar or per-example values}).
LossFn = Callable[..., tuple[dict[str, Float[Array, " b"]], dict[str, Array]]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, frozen, batch, due_step)


def make_train_step(
    loss_fn: LossFn,
    optimizer: GroupedOptimizer,
    *,
    loss_weights: Mapping[str, float],
    ema_decay: float | None,
    seed: int,
    accumulate_steps: int = 1,
) -> TrainStep:
    """Returns a pure function (state, frozen, batch, due_step=0.0) -> (state, metrics).

    Args:
        loss_fn: called as `loss_fn(params, batch, key, train=True)` with the merged parameters. It returns per-example
            values (b,) of every loss, and further metrics, of which means are reported.
        optimizer: for the trainable tree.
        loss_weights: weight of every loss; a loss of weight 0 may be left out by `loss_fn`.
        ema_decay: None keeps no average; then the state's `ema` is None too.
        seed: every random number of step s comes from `fold_in(key(seed), s)`.
        accumulate_steps: the batch is worked through in this many equal parts, to save memory.

    `due_step` is a scalar for the learning rates, see `optim.schedules.Schedule`. The metrics are scalars: `loss`,
    `loss/<name>`, `grad_norm/<group>` (before clipping), `param_norm/<group>`, `learning_rate/<group>`, and those of `loss_fn`.
    """

    def loss_and_gradients(trainable: Any, frozen: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Metrics, Any]:
        def total(params: Any) -> tuple[Float[Array, ""], Metrics]:
            metrics = _losses(loss_fn, loss_weights, merge(params, frozen), batch, key, train=True)
            return metrics["loss"], metrics

        gradients, metrics = jax.grad(total, has_aux=True)(trainable)
        return metrics, gradients

    def train_step(
        state: TrainState, frozen: Any, batch: Batch, due_step: ArrayLike = 0.0
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate_steps == 1:
            metrics, gradients = loss_and_gradients(state.trainable, frozen, batch, key)
        else:

            def one_part(part: Any) -> tuple[Metrics, Any]:
                index, examples = part
                return loss_and_gradients(state.trainable, frozen, examples, jax.random.fold_in(key, index))

            metrics, gradients = _mean_over_parts(one_part, batch, accumulate_steps)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable, due_step)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = None if ema_decay is None else update_ema(state.ema, trainable, decay_at(ema_decay, state.step))
        metrics |= _norms("grad_norm", gradients, optimizer.groups) | _norms("param_norm", trainable, optimizer.groups)
        metrics |= {f"learning_rate/{name}": rate(state.step, due_step) for name, rate in optimizer.schedules.items()}
        return TrainState(state.step + 1, trainable, opt_state, ema), metrics

    return train_step


def evaluate_losses(
    loss_fn: LossFn, loss_weights: Mapping[str, float], trainable: Any, frozen: Any, batch: Batch, key: PRNGKeyArray
) -> Metrics:
    """Returns `loss`, `loss/<name>` and the metrics of `loss_fn` with train=False; nothing is differentiated."""
    return _losses(loss_fn, loss_weights, merge(trainable, frozen), batch, key, train=False)


def compile_train_step(
    train_step: TrainStep,
    state: TrainState,
    frozen: Any,
    batch: Batch,
    mesh: Mesh,
    rules: AxisRules = DEFAULT_RULES,
) -> jax.stages.Compiled:
    """Compiles `train_step` ahead of time; the state is donated and comes back with the same shardings.

    The compiled step wants all four arguments; `due_step` is a float32 scalar on the mesh.

    Args:
        train_step: from `make_train_step`.
        state, frozen: arrays, or shape structs with shardings, that lie on `mesh`.
        batch: an example of one process's batch: arrays or shape structs.
        mesh: the compiled step takes batches that `shard_batch` put on it.
        rules: for logical constraints on activations.
    """
    structs, frozen_structs = _structs(state, mesh), _structs(frozen, mesh)
    out_shardings = (jax.tree.map(lambda x: x.sharding, structs), replicated(mesh))
    due_step = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        return jitted.lower(structs, frozen_structs, batch_structs(batch, mesh), due_step).compile()


def compile_evaluate_losses(
    loss_fn: LossFn,
    loss_weights: Mapping[str, float],
    trainable: Any,
    frozen: Any,
    batch: Batch,
    mesh: Mesh,
    rules: AxisRules = DEFAULT_RULES,
) -> jax.stages.Compiled:
    """Compiles `evaluate_losses` to (trainable, frozen, batch, key) -> metrics; see `compile_train_step`.

    The key is `jax.random.key(...)`; nothing is donated.
    """

    def evaluate(trainable: Any, frozen: Any, batch: Batch, key: PRNGKeyArray) -> Metrics:
        return evaluate_losses(loss_fn, loss_weights, trainable, frozen, batch, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    jitted = jax.jit(evaluate, out_shardings=replicated(mesh))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        lowered = jitted.lower(_structs(trainable, mesh), _structs(frozen, mesh), batch_structs(batch, mesh), key)
        return lowered.compile()


def _losses(
    loss_fn: LossFn, loss_weights: Mapping[str, float], params: Any, batch: Batch, key: PRNGKeyArray, train: bool
) -> Metrics:
    """`loss`, `loss/<name>` and the means of the further metrics."""
    values, extra = loss_fn(params, batch, key, train=train)
    loss, means = reduce_losses(values, loss_weights)
    metrics = {name: jnp.mean(value.astype(jnp.float32)) for name, value in extra.items()}
    return metrics | {"loss": loss} | {f"loss/{name}": mean for name, mean in means.items()}


def _mean_over_parts(function: Callable[[Any], Any], batch: Batch, num_parts: int) -> Any:
    """Averages `function((index, part))` over the parts of the batch, one after another.

    Part i has the examples i, i + num_parts, ...: so every device keeps its own examples.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % num_parts:
        raise ValueError(
            f"expected a batch size divisible by accumulate_steps={num_parts}, got {size}; change one of the two"
        )
    parts = jax.tree.map(lambda x: x.reshape(size // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.eval_shape(function, (jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], parts)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b / num_parts, total, function(part)), None

    return jax.lax.scan(add, zeros, (jnp.arange(num_parts), parts))[0]


def _norms(prefix: str, tree: Any, groups: Any) -> Metrics:
    """The norm over all arrays of each group."""
    squares: dict[str, list[Array]] = {}
    names = flatten(groups)
    for path, leaf in flatten(tree).items():
        squares.setdefault(names[path], []).append(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return {f"{prefix}/{name}": jnp.sqrt(sum(values)) for name, values in squares.items()}


def _structs(tree: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings; what doesn't lie on the mesh yet is meant to be replicated."""

    def struct_of(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        on_mesh = isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh == mesh
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if on_mesh else replicated(mesh))

    return jax.tree.map(struct_of, tree)
