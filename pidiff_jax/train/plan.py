"""The plan of a training run: shapes, shardings, parameter groups, optimizer and compiled step; it allocates nothing.

A plan can be made for devices that are not there, and of a model that this machine could not hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from pidiff_jax.optim.groups import GroupedOptimizer, make_optimizer
from pidiff_jax.optim.rules import assign_groups, describe_parameters, split
from pidiff_jax.sharding.rules import infer_shardings, shardings_of
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.train.settings import LoopSettings
from pidiff_jax.train.state import TrainState, initial_state, state_shardings
from pidiff_jax.train.step import compile_evaluate_losses, compile_train_step, make_train_step

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an experiment becomes on a mesh.

    groups: for every parameter the name of its group, as a tree. parameter_table: the groups in words.
    state, frozen: shape structs with shardings.
    """

    experiment: Experiment
    settings: LoopSettings
    mesh: Mesh
    groups: dict[str, Any]
    parameter_table: str
    optimizer: GroupedOptimizer
    state: TrainState
    frozen: Any

    def compile_step(self, record: Record | None = None) -> jax.stages.Compiled:
        """Compiles the training step, (state, frozen, batch, due_step) -> (state, metrics); see `make_train_step`.

        record: arrays or structs of one record, where the data differ from `experiment.record`.

        Raises:
            ValueError: the batch can't be split over the mesh.
        """
        e, s = self.experiment, self.settings
        step = make_train_step(
            e.losses,
            self.optimizer,
            loss_weights=e.loss_weights,
            ema_decay=s.ema_decay,
            seed=s.seed,
            accumulate_steps=s.accumulate_steps,
        )
        return compile_train_step(step, self.state, self.frozen, self._local_batch(record), self.mesh)

    def compile_validation(self, record: Record | None = None) -> jax.stages.Compiled:
        """Compiles the losses without training, (trainable, frozen, batch, key) -> metrics."""
        e, batch = self.experiment, self._local_batch(record)
        return compile_evaluate_losses(e.losses, e.loss_weights, self.state.trainable, self.frozen, batch, self.mesh)

    def _local_batch(self, record: Record | None) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of one process."""
        size = self.settings.batch_size // jax.process_count()
        fields = self.experiment.record if record is None else record
        return {name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in fields.items()}


def make_plan(experiment: Experiment, settings: LoopSettings, mesh: Mesh) -> Plan:
    """Assigns parameters to groups, lays them out on the mesh and makes the optimizer.

    Example:
        >>> plan = make_plan(experiment, settings, make_mesh(settings.mesh))
        >>> print(plan.parameter_table)
        >>> plan.compile_step().memory_analysis().temp_size_in_bytes

    Raises:
        ValueError: rules, groups, mesh and parameters that don't fit each other.
    """
    layout = lay_out(experiment, mesh)
    optimizer = make_optimizer(layout.groups, experiment.groups, settings.num_steps, settings.clip_norm)
    ema = settings.ema_decay is not None
    state = jax.eval_shape(lambda params: initial_state(params, optimizer, ema=ema), layout.trainable)
    shardings = state_shardings(state, shardings_of(layout.trainable))
    return Plan(
        experiment=experiment,
        settings=settings,
        mesh=mesh,
        groups=layout.groups,
        parameter_table=layout.parameter_table,
        optimizer=optimizer,
        state=_placed(state, shardings),
        frozen=layout.frozen,
    )


class Layout(NamedTuple):
    """Where an experiment's parameters lie on a mesh; see `Plan` for `groups` and `parameter_table`.

    trainable, frozen: shape structs with shardings.
    """

    groups: dict[str, Any]
    parameter_table: str
    trainable: dict[str, Any]
    frozen: dict[str, Any]


def lay_out(experiment: Experiment, mesh: Mesh) -> Layout:
    """Splits the parameters by the experiment's rules and lays them out on the mesh.

    Raises:
        ValueError: rules, mesh and parameters that don't fit each other.
    """
    shapes = nn.meta.unbox(experiment.shapes)
    groups = assign_groups(experiment.rules, shapes)
    (trainable, frozen), (trainable_at, frozen_at) = (
        split(tree, groups) for tree in (shapes, infer_shardings(experiment.shapes, mesh))
    )
    frozen = _in_dtype(frozen, experiment.frozen_dtype)
    table = describe_parameters(groups, shapes)
    return Layout(groups, table, _placed(trainable, trainable_at), _placed(frozen, frozen_at))


def _in_dtype(tree: Any, dtype: Any) -> Any:
    """Shape structs in the dtype that `sharding.rules.place` would give their arrays."""

    def convert(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        converts = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, dtype if converts else x.dtype)

    return jax.tree.map(convert, tree)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, shardings)
