"""DPM-Solver++(2M): second order from the predictions of two steps, in the data's terms."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pidiff_jax.diffusion.samplers.levels import Levels, Trajectory
from pidiff_jax.diffusion.samplers.sampler import Prediction

# Shorter trajectories end with a step of first order, for stability.
_STABLE_STEPS = 15


class Factors(NamedTuple):
    """Of the next latents, (n,) on the host and () in a step: the latents, and the x0 of this step and of the one before."""

    latents: Any
    x0: Any
    previous_x0: Any


def step(
    latents: Float[Array, "b h w c"],
    memory: Float[Array, "b h w c"],
    prediction: Prediction,
    factors: Factors,
    noise: Float[Array, "b h w c"] | None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The memory is the x0 of the step before."""
    following = factors.latents * latents + factors.x0 * prediction.x0 + factors.previous_x0 * memory
    return following, prediction.x0


def memory_of(latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Not read by the first step, which is of first order."""
    return jnp.zeros_like(latents)


def dpm_solver_2m(levels: Levels, trajectory: Trajectory) -> Factors:
    """The midpoint form, of first order in the first step, and in the last one where it ends without noise.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2; the order of the last step as DPMSolverMultistepScheduler of
    diffusers.
    """
    half_log_snr = levels.half_log_snr
    h = np.diff(half_log_snr)
    gain = -levels.signal[1:] * np.expm1(-h)
    slope = np.zeros_like(h)
    slope[1:] = 0.5 * h[1:] / h[:-1]  # 1 / (2 r)
    if trajectory.final_sigma == "zero" or trajectory.num_steps < _STABLE_STEPS:
        slope[-1] = 0.0
    return Factors(levels.noise[1:] / levels.noise[:-1], gain * (1.0 + slope), -gain * slope)
