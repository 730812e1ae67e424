"""Where the steps of a trajectory lie: its timesteps, and how much signal and noise its latents hold at each of them.

Everything is computed once, on the host, in float64.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float

Spacing = Literal["leading", "trailing", "linspace"]
FinalSigma = Literal["zero", "min"]

# A schedule that ends in noise alone has an infinite sigma there; solvers in sigma take this alpha instead, as diffusers does.
_SMALLEST_ALPHA = 2.0**-24
_KARRAS_RHO = 7.0
# Latent consistency models were distilled on so many of the training's timesteps.
_LCM_ORIGINAL_STEPS = 50


@dataclass(frozen=True)
class Trajectory:
    """What is asked of a sampler; `make_sampler` explains the fields."""

    alphas_cumprod: Float[np.ndarray, " t"]
    num_steps: int
    spacing: str = "leading"
    steps_offset: int = 0
    final_sigma: str = "zero"
    eta: float = 0.0

    @property
    def num_train_steps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def final_alpha(self) -> float:
        """Of the level at which the trajectory ends: without noise, or with that of training step 0."""
        return 1.0 if self.final_sigma == "zero" else float(self.alphas_cumprod[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Levels:
    """At level i the latents are signal[i] * x0 + noise[i] * eps, with signal^2 + noise^2 = 1.

    timesteps (n,): those of the steps, as the network reads them; they may be fractional.
    signal, noise (n + 1,): of the levels that the steps start from, and of the one at which the last step ends.

    Host arrays, or whatever a transformation makes of them.
    """

    timesteps: Any
    signal: Any
    noise: Any

    @property
    def sigmas(self) -> Float[np.ndarray, " n_1"]:
        """noise / signal: the noise level where latents are x0 + sigma * eps, as Karras et al. and k-diffusion write."""
        return self.noise / self.signal

    @property
    def half_log_snr(self) -> Float[np.ndarray, " n_1"]:
        """log(signal / noise), the lambda of the DPM-Solver papers; infinite where there is no noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.signal) - np.log(self.noise)

    def starting_at(self, step: int) -> "Levels":
        return Levels(self.timesteps[step:], self.signal[step:], self.noise[step:])


def spaced_timesteps(
    num_train_steps: int,
    num_steps: int,
    *,
    spacing: str = "leading",
    steps_offset: int = 0,
    whole: bool = True,
    to_zero: bool = False,
) -> Float[np.ndarray, " n"]:
    """The timesteps of `num_steps` steps, descending.

    Args:
        num_train_steps: steps of the noise schedule.
        num_steps: steps to take, at most `num_train_steps`.
        spacing: "leading" starts below the noisiest step and is what SD 1.x was published with; "trailing" starts at
            the noisiest step, as zero-terminal-SNR schedules need; "linspace" has both ends.
        steps_offset: added with "leading" only; 1 for Stable Diffusion.
        whole: rounds those of "linspace"; the others are whole anyway.
        to_zero: "leading" and "linspace" leave out timestep 0, at which the last step ends.

    Raises:
        ValueError: so many steps can't be taken, or an unknown spacing.

    Source: Lin et al. 2024 (arXiv 2305.08891), table 2.
    """
    check_num_steps(num_steps, num_train_steps)
    check_choice("spacing", spacing, get_args(Spacing))
    points = num_steps + to_zero
    if spacing == "leading":
        timesteps = np.arange(points)[::-1] * (num_train_steps // points) + float(steps_offset)
    elif spacing == "linspace":
        timesteps = np.linspace(0, num_train_steps - 1, points)[::-1]
        timesteps = np.round(timesteps) if whole else timesteps
    else:
        timesteps = np.round(np.arange(num_train_steps, 0, -num_train_steps / num_steps)) - 1
    timesteps = timesteps[:num_steps]  # rounding may give "trailing" one more
    if not (0 <= timesteps[-1] and timesteps[0] < num_train_steps and (np.diff(timesteps) < 0).all()):
        raise ValueError(
            f"expected distinct timesteps of at least 0 and below {num_train_steps}, got {num_steps} from "
            f"{timesteps[0]:g} to {timesteps[-1]:g} with steps_offset={steps_offset}; take fewer steps or a smaller offset"
        )
    return timesteps


def check_num_steps(num_steps: Any, most: int) -> None:
    """Raises ValueError unless so many sampling steps can be taken."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= most:
        raise ValueError(f"expected 1 to {most} sampling steps, got {num_steps}; {min(20, most)} to 50 are usual")


def at_training_steps(trajectory: Trajectory) -> Levels:
    """Whole timesteps, with the schedule's own levels: DDPM and DDIM."""
    t = trajectory
    timesteps = spaced_timesteps(t.num_train_steps, t.num_steps, spacing=t.spacing, steps_offset=t.steps_offset)
    return _at(timesteps, t)


def at_distilled_steps(trajectory: Trajectory) -> Levels:
    """Evenly chosen from the timesteps that a latent consistency model was distilled on; spacing and offset don't count.

    Source: Luo et al. 2023 (arXiv 2310.04378), section 4.3; LCMScheduler of diffusers.
    """
    original_steps = min(_LCM_ORIGINAL_STEPS, trajectory.num_train_steps)
    check_num_steps(trajectory.num_steps, original_steps)
    distilled = np.arange(original_steps, 0, -1) * (trajectory.num_train_steps // original_steps) - 1.0
    chosen = np.floor(np.linspace(0, original_steps, trajectory.num_steps, endpoint=False)).astype(int)
    return _at(distilled[chosen], trajectory)


def at_interpolated_sigmas(trajectory: Trajectory, *, whole: bool = False, to_zero: bool = False) -> Levels:
    """Sigmas of the spaced timesteps, interpolated where these are fractional: Euler, DPM-Solver++ and UniPC.

    whole, to_zero: see `spaced_timesteps`.
    """
    t = trajectory
    timesteps = spaced_timesteps(
        t.num_train_steps, t.num_steps, spacing=t.spacing, steps_offset=t.steps_offset, whole=whole, to_zero=to_zero
    )
    train_sigmas = _sigmas(t.alphas_cumprod)
    return _with_sigmas(timesteps, np.interp(timesteps, np.arange(len(train_sigmas)), train_sigmas), t)


def at_karras_sigmas_of_steps(trajectory: Trajectory) -> Levels:
    """Karras sigmas between the noisiest and the least noisy step that the spacing has: Euler."""
    sigmas = at_interpolated_sigmas(trajectory).sigmas[:-1]
    sigmas = karras_sigmas(sigmas[0], sigmas[-1], trajectory.num_steps)
    return _with_sigmas(_timesteps(sigmas, trajectory), sigmas, trajectory)


def at_karras_sigmas_of_schedule(trajectory: Trajectory) -> Levels:
    """Karras sigmas over the whole schedule, whose spacing and offset don't count: DPM-Solver++ and UniPC.

    The network reads whole timesteps near them, of which several steps can share one.
    """
    check_num_steps(trajectory.num_steps, trajectory.num_train_steps)
    train_sigmas = _sigmas(trajectory.alphas_cumprod)
    sigmas = karras_sigmas(train_sigmas[-1], train_sigmas[0], trajectory.num_steps)
    return _with_sigmas(np.round(_timesteps(sigmas, trajectory)), sigmas, trajectory)


def karras_sigmas(largest: float, smallest: float, num_steps: int) -> Float[np.ndarray, " n"]:
    """Sigmas that are dense where there is little noise, from the largest to the smallest.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 5, with rho = 7.
    """
    ramp = np.linspace(0.0, 1.0, num_steps)
    first, last = largest ** (1.0 / _KARRAS_RHO), smallest ** (1.0 / _KARRAS_RHO)
    return (first + ramp * (last - first)) ** _KARRAS_RHO


def _sigmas(alphas: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    alphas = np.where(alphas == 0.0, _SMALLEST_ALPHA, alphas)
    return np.sqrt((1.0 - alphas) / alphas)


def _timesteps(sigmas: Float[np.ndarray, " n"], trajectory: Trajectory) -> Float[np.ndarray, " n"]:
    """Fractional timesteps, interpolated between the logarithms of the schedule's sigmas."""
    train_sigmas = _sigmas(trajectory.alphas_cumprod)
    return np.interp(np.log(sigmas), np.log(train_sigmas), np.arange(len(train_sigmas)))


def _at(timesteps: Float[np.ndarray, " n"], trajectory: Trajectory) -> Levels:
    alphas = np.append(trajectory.alphas_cumprod[timesteps.astype(int)], trajectory.final_alpha)
    return Levels(timesteps, np.sqrt(alphas), np.sqrt(1.0 - alphas))


def _with_sigmas(timesteps: Float[np.ndarray, " n"], sigmas: Float[np.ndarray, " n"], trajectory: Trajectory) -> Levels:
    sigmas = np.append(sigmas, np.sqrt((1.0 - trajectory.final_alpha) / trajectory.final_alpha))
    signal = 1.0 / np.sqrt(sigmas**2 + 1.0)
    return Levels(timesteps, signal, sigmas * signal)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError for a word that isn't known."""
    if value not in known:
        words = ", ".join(map(repr, known[:-1]))
        raise ValueError(f"expected {name} {words} or {known[-1]!r}, got {value!r}; correct it")
