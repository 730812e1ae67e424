"""Samplers by the names that users know."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np

from pidiff_jax.diffusion.parameterisation import check_prediction_type
from pidiff_jax.diffusion.samplers import dpm_solver, one_step, unipc
from pidiff_jax.diffusion.samplers import levels as grids
from pidiff_jax.diffusion.samplers.levels import FinalSigma, Levels, Spacing, Trajectory
from pidiff_jax.diffusion.samplers.sampler import Method, Sampler, StepFn
from pidiff_jax.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class _Method:
    """Where the steps lie, their factors, and the function that applies them.

    options: of "eta" and "final_sigma", those that mean something.
    in_sigma: starts, as diffusers does, with the noise that the first level of "linspace" and "trailing" has.
    """

    levels: Callable[[Trajectory], Levels]
    factors: Callable[[Levels, Trajectory], Any]
    step: StepFn
    memory_of: Callable[[Any], Any] = one_step.memory_of
    options: tuple[str, ...] = ()
    in_sigma: bool = False


_EULER = partial(_Method, factors=one_step.euler, step=one_step.step, options=("final_sigma",), in_sigma=True)
_DPM_SOLVER = partial(
    _Method,
    factors=dpm_solver.dpm_solver_2m,
    step=dpm_solver.step,
    memory_of=dpm_solver.memory_of,
    options=("final_sigma",),
)
_UNIPC = partial(_Method, factors=unipc.unipc, step=unipc.step, memory_of=unipc.memory_of, options=("final_sigma",))
_TO_ZERO = partial(grids.at_interpolated_sigmas, whole=True, to_zero=True)
_METHODS = {
    "ddpm": _Method(grids.at_training_steps, one_step.ddpm, one_step.step),
    "ddim": _Method(grids.at_training_steps, one_step.ddim, one_step.step, options=("eta", "final_sigma")),
    "euler": _EULER(grids.at_interpolated_sigmas),
    "euler_karras": _EULER(grids.at_karras_sigmas_of_steps),
    "euler_ancestral": _Method(grids.at_interpolated_sigmas, one_step.euler_ancestral, one_step.step, in_sigma=True),
    "dpmpp_2m": _DPM_SOLVER(_TO_ZERO),
    "dpmpp_2m_karras": _DPM_SOLVER(grids.at_karras_sigmas_of_schedule),
    "unipc": _UNIPC(_TO_ZERO),
    "unipc_karras": _UNIPC(grids.at_karras_sigmas_of_schedule),
    "lcm": _Method(grids.at_distilled_steps, one_step.lcm, one_step.step),
}
SAMPLERS = tuple(_METHODS)


def check_sampler(name: str) -> None:
    """Raises ValueError unless there is a sampler of this name; says which there are."""
    if name not in _METHODS:
        raise ValueError(f"expected a sampler of {', '.join(_METHODS)}, got {name!r}; correct the name")


def make_sampler(
    name: str,
    schedule: NoiseSchedule,
    prediction_type: str,
    num_steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    final_sigma: str = "zero",
    eta: float = 0.0,
    first_step: int = 0,
) -> Sampler:
    """The trajectory of a sampler, ready for `sample`; computed on the host, so that the schedule can't be traced.

    Args:
        name: one of `SAMPLERS`.
        schedule: the one that the network was trained with.
        prediction_type: what the network predicts: "eps", "v" or "x0".
        num_steps: steps of the whole trajectory.
        spacing, steps_offset: see `spaced_timesteps`. LCM has its own timesteps, and DPM-Solver++ and UniPC with Karras
            sigmas have those of the whole schedule.
        final_sigma: the last step ends without noise ("zero"), or with the noise of training step 0 ("min", diffusers'
            set_alpha_to_one=False of DDIM and final_sigmas_type="sigma_min" of the others).
        eta: of DDIM: 0 is deterministic, 1 has DDPM's variance.
        first_step: steps to leave out at the start, where a given picture is changed; (1 - strength) * num_steps.

    Raises:
        ValueError: an unknown name, an option that the sampler doesn't have, steps that can't be taken, or a network that
            predicts noise where a zero-terminal-SNR schedule has nothing else.
    """
    check_sampler(name)
    method = _METHODS[name]
    check_prediction_type(prediction_type)
    grids.check_choice("spacing", spacing, get_args(Spacing))
    grids.check_choice("final_sigma", final_sigma, get_args(FinalSigma))
    _check_options(name, method, eta, final_sigma)
    alphas = np.asarray(schedule.alphas_cumprod, np.float64)
    trajectory = Trajectory(alphas, num_steps, spacing, steps_offset, final_sigma, eta)
    levels = method.levels(trajectory)
    if not 0 <= first_step < num_steps:
        raise ValueError(f"expected first_step of 0 to {num_steps - 1}, got {first_step}; leave at least one step")
    if prediction_type == "eps" and alphas[round(levels.timesteps[first_step])] == 0.0:
        raise ValueError(
            "expected a network that predicts v or x0 with a zero-terminal-SNR schedule, got eps; noise alone says nothing "
            "about the picture: take spacing 'leading', or the schedule without zero terminal SNR"
        )
    noise_scale = float(levels.noise[0]) if method.in_sigma and spacing != "leading" else 1.0
    levels = levels.starting_at(first_step)
    factors = method.factors(levels, trajectory)
    return Sampler(
        levels=levels,
        factors=factors,
        noise_scale=noise_scale,
        method=Method(
            step=method.step,
            memory_of=method.memory_of,
            prediction_type=prediction_type,
            stochastic=isinstance(factors, one_step.Factors) and factors.noise is not None,
        ),
        first_step=int(first_step),
    )


def _check_options(name: str, method: _Method, eta: float, final_sigma: str) -> None:
    for option, value, default in (("eta", eta, 0.0), ("final_sigma", final_sigma, "zero")):
        if value != default and option not in method.options:
            having = ", ".join(other for other, its in _METHODS.items() if option in its.options)
            raise ValueError(f"expected {option}={default!r} with {name}, got {value!r}; only {having} has it")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"expected eta in [0, 1], got {eta}; 0 is deterministic, 1 has DDPM's variance")
