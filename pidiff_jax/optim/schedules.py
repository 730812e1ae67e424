"""Learning-rate schedules: a linear warmup, a plateau, and a decay over the last part of the run."""

import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "linear", "cosine")


def make_schedule(
    name: str,
    peak: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 1.0,
    end_factor: float = 0.0,
) -> optax.Schedule:
    """Returns step -> learning rate.

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

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        if name != "constant":
            progress = jnp.clip((step - decay_start) / decay_steps, 0.0, 1.0)
            falling = 1 - progress if name == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
            rate = rate * (end_factor + (1 - end_factor) * falling)
        return peak * rate

    return schedule
