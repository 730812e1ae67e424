"""Learning-rate schedules: a linear warmup, a plateau, and a decay over the last part of the run."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

SCHEDULES = ("constant", "linear", "cosine")


@runtime_checkable
class Schedule(Protocol):
    """The learning rate of a group over a run."""

    def __call__(self, step: ArrayLike, due_step: ArrayLike = 0.0) -> Float[Array, ""]:
        """The rate of the update after `step` finished ones.

        due_step: the step whose decay is due by the clock, where that is later than `step`; a fraction of a step counts.
            The warmup is by steps alone: it is there for the optimizer's moments, which know updates and no seconds.
        """


def make_schedule(
    name: str,
    peak: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 1.0,
    end_factor: float = 0.0,
) -> Schedule:
    """Returns the learning rate as a function of the step.

    Args:
        name: "constant", or the shape of the decay, "linear" or "cosine".
        peak: learning rate after the warmup.
        num_steps: steps of the whole run; the decay ends there, and later steps keep the last value.
        warmup_steps: steps to rise from peak / warmup_steps to peak.
        decay_fraction: part of `num_steps`, at its end, over which the rate decays; 1 decays right after the warmup.
        end_factor: the rate decays to `end_factor * peak`.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"expected a schedule of {SCHEDULES}, got {name!r}; correct the group's schedule")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(f"expected warmup_steps in [0, num_steps={num_steps}], got {warmup_steps}; shorten the warmup")
    if not 0 < decay_fraction <= 1:
        raise ValueError(f"expected decay_fraction in (0, 1], got {decay_fraction}; 1 decays over the whole run")
    decay_start = max(warmup_steps, round(num_steps * (1 - decay_fraction)))
    decay_steps = max(num_steps - decay_start, 1)

    def schedule(step: ArrayLike, due_step: ArrayLike = 0.0) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        if name != "constant":
            progress = jnp.clip((jnp.maximum(step, due_step) - decay_start) / decay_steps, 0.0, 1.0)
            falling = 1 - progress if name == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
            rate = rate * (end_factor + (1 - end_factor) * falling)
        return peak * rate

    return schedule
