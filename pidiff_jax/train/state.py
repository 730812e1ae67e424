"""What changes during training, and nothing else: the trainable parameters, the optimizer's state, their average."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pidiff_jax.optim.groups import GroupedOptimizer
from pidiff_jax.paths import flatten
from pidiff_jax.sharding.rules import replicated


@struct.dataclass
class TrainState:
    """The donated and checkpointed part of a run; frozen parameters live beside it.

    step (int32 scalar) counts finished updates. ema mirrors trainable, or is None when no average is kept. The leaves are
    arrays, or whatever a `jax.tree.map` over the state makes of them: shape structs, shardings.
    """

    step: Any
    trainable: Any
    opt_state: Any
    ema: Any


def initial_state(trainable: Any, optimizer: GroupedOptimizer, *, ema: bool) -> TrainState:
    """The state before the first step; pure. It owns copies: what is given stays valid when the state is donated.

    Args:
        trainable: nested dict of arrays.
        optimizer: for the same tree.
        ema: whether to keep a moving average.
    """
    # Two copies: the average must not share the buffers that the first step donates.
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, trainable), optimizer.init(trainable), average)


def init_state(trainable: Any, optimizer: GroupedOptimizer, *, ema: bool, shardings: Any = None) -> TrainState:
    """`initial_state` of host or device arrays, on devices.

    shardings: tree of `NamedSharding` like `trainable`; None leaves everything on the default device.
    """

    def build(params: Any) -> TrainState:
        return initial_state(params, optimizer, ema=ema)

    if shardings is None:
        return jax.jit(build)(trainable)
    return jax.jit(build, out_shardings=state_shardings(jax.eval_shape(build, trainable), shardings))(trainable)


def state_shardings(state: Any, shardings: Any) -> Any:
    """Returns the sharding of every leaf of a `TrainState` (arrays or shape structs).

    Averages and moments, recognised by the parameter's path at the end of their own, lie where their parameter lies;
    everything else is replicated.
    """
    by_path = flatten(shardings)
    shapes = {path: leaf.shape for path, leaf in flatten(state.trainable).items()}
    everywhere = replicated(next(iter(by_path.values())).mesh)

    def sharding_of(key_path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in key_path]
        for start in range(len(names)):
            path = "/".join(names[start:])
            if shapes.get(path) == leaf.shape:
                return by_path[path]
        return everywhere

    return jax.tree_util.tree_map_with_path(sharding_of, state)
