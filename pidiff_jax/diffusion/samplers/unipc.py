"""UniPC of second order: a predictor's step, which the next step's prediction corrects without another call."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pidiff_jax.diffusion.samplers.levels import Levels, Trajectory
from pidiff_jax.diffusion.samplers.sampler import Prediction

_ORDER = 2


class Memory(NamedTuple):
    """The corrected latents of the step before, and the x0 of the two steps before."""

    latents: Float[Array, "b h w c"]
    x0: Float[Array, "b h w c"]
    earlier_x0: Float[Array, "b h w c"]


class Corrector(NamedTuple):
    """Factors of the corrected latents, (n,) on the host and () in a step."""

    latents: Any
    previous_latents: Any
    x0: Any
    previous_x0: Any
    earlier_x0: Any


class Predictor(NamedTuple):
    """Factors of the next latents: the corrected latents, and the x0 of this step and of the one before."""

    latents: Any
    x0: Any
    previous_x0: Any


class Factors(NamedTuple):
    corrector: Corrector
    predictor: Predictor


def step(
    latents: Float[Array, "b h w c"],
    memory: Memory,
    prediction: Prediction,
    factors: Factors,
    noise: Float[Array, "b h w c"] | None,
) -> tuple[Float[Array, "b h w c"], Memory]:
    """Corrects the latents by what the network says of them, then goes on from there."""
    c, p, x0 = factors.corrector, factors.predictor, prediction.x0
    corrected = (
        c.latents * latents
        + c.previous_latents * memory.latents
        + c.x0 * x0
        + c.previous_x0 * memory.x0
        + c.earlier_x0 * memory.earlier_x0
    )
    following = p.latents * corrected + p.x0 * x0 + p.previous_x0 * memory.x0
    return following, Memory(corrected, x0, memory.x0)


def memory_of(latents: Float[Array, "b h w c"]) -> Memory:
    """Not read by the steps that have no step, or only one, before them."""
    return Memory(*(jnp.zeros_like(latents) for _ in Memory._fields))


def unipc(levels: Levels, trajectory: Trajectory) -> Factors:
    """Order 2 with B(h) = exp(h) - 1 ("bh2") in the data's terms; order 1 in the first and in the last step.

    Source: Zhao et al. 2023 (arXiv 2302.04867), section 3, in terms of x0; orders as UniPCMultistepScheduler of diffusers.
    """
    half_log_snr = levels.half_log_snr
    h = np.diff(half_log_snr)
    num_steps = len(h)
    # What both halves of a step share: latents shrink by `shrink`, and x0 and its slopes come in by `gain`.
    shrink = levels.noise[1:] / levels.noise[:-1]
    gain = -levels.signal[1:] * np.expm1(-h)
    slope = np.zeros(num_steps)  # 1 / r of the predictor, where it is of second order
    slope[1:-1] = -h[1:-1] / h[:-2]
    predictor = Predictor(shrink, gain * (1.0 - 0.5 * slope), gain * 0.5 * slope)

    corrector = Corrector(*(np.zeros(num_steps) for _ in Corrector._fields))
    corrector.latents[0] = 1.0  # there is nothing to correct by
    for i in range(1, num_steps):  # the step from level i - 1 to level i, done again
        order = _ORDER if slope[i - 1] else 1
        past, now = _corrector_weights(h[i - 1], 1.0 / slope[i - 1]) if order == _ORDER else (0.0, 0.5)
        past = past * slope[i - 1]
        corrector.previous_latents[i] = shrink[i - 1]
        corrector.x0[i] = gain[i - 1] * now
        corrector.previous_x0[i] = gain[i - 1] * (1.0 - now - past)
        corrector.earlier_x0[i] = gain[i - 1] * past
    return Factors(corrector, predictor)


def _corrector_weights(h: float, r: float) -> tuple[float, float]:
    """rho of the differences to the step before (at r < 0) and to this one: the system of the paper's theorem 3.1."""
    phi = np.expm1(-h) / -h - 1.0
    next_phi = phi / -h - 0.5
    right = np.array([phi, 2.0 * next_phi]) / np.expm1(-h)
    past, now = np.linalg.solve([[1.0, 1.0], [r, 1.0]], right)
    return float(past), float(now)
