"""One optimizer over parameter groups, each with its own learning rate, schedule and weight decay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import traverse_util

from pidiff_jax.optim.rules import FROZEN, Tree, flatten, listing
from pidiff_jax.optim.schedules import make_schedule


@dataclass(frozen=True)
class GroupSpec:
    """How one group is trained, with AdamW.

    learning_rate is the peak; see `schedules.make_schedule` for schedule, warmup_steps, decay_fraction and end_factor.
    weight_decay applies to arrays of two or more dimensions, so not to biases and norms.
    """

    learning_rate: float
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_fraction: float = 1.0
    end_factor: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.end_factor < 0:
            raise ValueError(
                f"expected a learning_rate above 0 and a weight_decay and end_factor of at least 0, got {self}; correct the "
                "group"
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"expected b1 and b2 in [0, 1), got {self.b1} and {self.b2}; correct the group")


@dataclass(frozen=True)
class GroupedOptimizer:
    """An optax transformation (`init`, `update`) that also says which groups it trains, and at which rates.

    groups mirrors the trainable tree with the group name of every leaf; schedules maps a group's name to step -> rate.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    groups: dict[str, Any]
    schedules: dict[str, optax.Schedule]


def make_optimizer(
    groups: Tree, specs: Mapping[str, GroupSpec], num_steps: int, clip_norm: float | None = None
) -> GroupedOptimizer:
    """Builds AdamW per group behind one clipping of the global gradient norm.

    Args:
        groups: group name of every parameter, from `rules.assign_groups`; frozen leaves are left out.
        specs: group name -> how to train it, for every group but "frozen".
        num_steps: steps of the whole run, for the schedules.
        clip_norm: largest norm of the gradient over all groups together; None doesn't clip.

    Raises:
        ValueError: a group has no spec, a spec has no parameters, or nothing is trained.
    """
    labels = {path: name for path, name in flatten(groups).items() if name != FROZEN}
    names = set(labels.values())
    if not names:
        raise ValueError("expected at least one parameter to train, got only frozen ones; add a rule with a group")
    if FROZEN in specs:
        raise ValueError(f"expected no spec for the group {FROZEN!r}, got one; frozen parameters are never updated")
    if names != set(specs):
        raise ValueError(
            f"expected a spec for each of the groups {sorted(names)}, got {sorted(specs)}; "
            f"the difference is {listing(sorted(names ^ set(specs)))}"
        )
    schedules = {name: _schedule(spec, num_steps) for name, spec in specs.items()}
    transforms = {name: _adamw(spec, schedules[name]) for name, spec in specs.items()}
    tree = traverse_util.unflatten_dict(labels, sep="/")
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    chained = optax.chain(*clip, optax.partition(transforms, tree))
    return GroupedOptimizer(chained.init, chained.update, tree, schedules)


def _schedule(spec: GroupSpec, num_steps: int) -> optax.Schedule:
    return make_schedule(
        spec.schedule,
        spec.learning_rate,
        num_steps=num_steps,
        warmup_steps=spec.warmup_steps,
        decay_fraction=spec.decay_fraction,
        end_factor=spec.end_factor,
    )


def _adamw(spec: GroupSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(spec.b1, spec.b2, spec.eps),
        optax.add_decayed_weights(spec.weight_decay, mask=_is_matrix) if spec.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


def _is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)
