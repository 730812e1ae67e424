"""One optimizer over parameter groups, each with its own learning rate, schedule and weight decay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import optax
from jax.typing import ArrayLike
from optax import contrib

from pidiff_jax.optim.rules import FROZEN
from pidiff_jax.optim.schedules import Schedule, make_schedule
from pidiff_jax.paths import Tree, flatten, listing, unflatten
from pidiff_jax.ranges import check_count, check_number

# Root mean square of a matrix's update by Muon at a rate of 1: about AdamW's, so that the same rates and decays fit.
# Source: Liu et al. 2025 (arXiv 2502.16982), section 2.2.
_MUON_RMS = 0.2


@dataclass(frozen=True)
class GroupSpec:
    """How one group is trained.

    learning_rate is the peak; see `schedules.make_schedule` for schedule, warmup_steps, decay_fraction and end_factor.
    weight_decay applies to arrays of two or more dimensions, so not to biases and norms.
    optimizer: "adamw", or "muon", whose updates of matrices are orthogonal: directions of small gradients are learned as
        fast as those of large ones. A convolution's kernel is a matrix from patches to channels. With "muon", arrays of
        fewer dimensions are trained by Adam with Nesterov's momentum and without decay.
        Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    momentum: of Muon's matrices; b1 and b2 are Adam's, eps serves both.
    """

    learning_rate: float
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_fraction: float = 1.0
    end_factor: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self):
        if self.optimizer not in _TRANSFORMS:
            raise ValueError(f"expected an optimizer of {list(_TRANSFORMS)}, got {self.optimizer!r}; correct the group")
        check_number("a learning_rate", self.learning_rate, above=0)
        check_number("an eps", self.eps, above=0)
        for name in ("weight_decay", "end_factor"):
            check_number(f"a {name}", getattr(self, name), least=0)
        for name in ("b1", "b2", "momentum"):
            check_number(f"a {name}", getattr(self, name), least=0, below=1)
        check_count("warmup_steps", self.warmup_steps, least=0)


@dataclass(frozen=True)
class GroupedOptimizer:
    """An optax transformation of the trainable tree that also says which groups it trains, and at which rates.

    groups mirrors the trainable tree with the group name of every leaf; schedules has one for each group's name.
    transformation: schedules by name -> what optax makes of them.
    """

    groups: dict[str, Any]
    schedules: dict[str, Schedule]
    transformation: Callable[[Mapping[str, optax.Schedule]], optax.GradientTransformation]

    def init(self, trainable: Any) -> Any:
        """The optimizer's state before the first update."""
        return self.transformation(self.schedules).init(trainable)

    def update(self, gradients: Any, state: Any, trainable: Any, due_step: ArrayLike = 0.0) -> tuple[Any, Any]:
        """Returns what to add to `trainable`, and the next state; `due_step` is that of `Schedule`."""
        # Made anew with every call, so that optax's own optimizers, which know steps alone, have rates of this update.
        due = {name: partial(schedule, due_step=due_step) for name, schedule in self.schedules.items()}
        return self.transformation(due).update(gradients, state, trainable)


def make_optimizer(
    groups: Tree, specs: Mapping[str, GroupSpec], num_steps: int, clip_norm: float | None = None
) -> GroupedOptimizer:
    """Builds one optimizer per group behind one clipping of the global gradient norm.

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
    schedules = {name: schedule_of(spec, num_steps) for name, spec in specs.items()}
    tree = unflatten(labels)
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]

    def transformation(rates: Mapping[str, optax.Schedule]) -> optax.GradientTransformation:
        transforms = {name: _TRANSFORMS[spec.optimizer](spec, rates[name]) for name, spec in specs.items()}
        return optax.chain(*clip, optax.partition(transforms, tree))

    return GroupedOptimizer(tree, schedules, transformation)


def schedule_of(spec: GroupSpec, num_steps: int) -> Schedule:
    """The learning rate of a group over the steps of a run; see `schedules.make_schedule`."""
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


def _muon(spec: GroupSpec, schedule: optax.Schedule) -> optax.GradientTransformation:
    return contrib.muon(
        schedule,
        beta=spec.momentum,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        consistent_rms=_MUON_RMS,
        adam_b1=spec.b1,
        adam_b2=spec.b2,
        muon_weight_dimension_numbers=_matrix_dimensions,
    )


_TRANSFORMS = {"adamw": _adamw, "muon": _muon}


def _matrix_dimensions(params: Any) -> Any:
    """The axes of every array that are inputs and outputs, as Flax has them: outputs last; None: no matrix."""

    def of(x: Any) -> contrib.MuonDimensionNumbers | None:
        return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1) if x.ndim >= 2 else None

    return jax.tree.map(of, params)


def _is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)
