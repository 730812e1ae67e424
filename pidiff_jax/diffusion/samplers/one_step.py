"""DDPM, DDIM, Euler, Euler ancestral and LCM: samplers without memory, one step with different factors.

Each is published as its own formula. Since latents = signal * x0 + noise * eps, every one of them is a weighted sum of the
latents, the predicted x0, the predicted eps and fresh noise; the functions here give the weights and their source.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from pidiff_jax.diffusion.samplers.levels import Levels, Trajectory
from pidiff_jax.diffusion.samplers.sampler import Prediction


class Factors(NamedTuple):
    """Of the next latents, (n,) on the host and () in a step; None where a sampler never has that part."""

    latents: Any = None
    x0: Any = None
    eps: Any = None
    noise: Any = None


def step(
    latents: Float[Array, "b h w c"],
    memory: tuple[()],
    prediction: Prediction,
    factors: Factors,
    noise: Float[Array, "b h w c"] | None,
) -> tuple[Float[Array, "b h w c"], tuple[()]]:
    """The weighted sum."""
    parts = (latents, prediction.x0, prediction.eps, noise)
    weighted = [f * part for f, part in zip(factors, parts, strict=True) if f is not None and part is not None]
    return sum(weighted[1:], start=weighted[0]), memory


def memory_of(latents: Float[Array, "b h w c"]) -> tuple[()]:
    """Nothing."""
    return ()


def ddpm(levels: Levels, trajectory: Trajectory) -> Factors:
    """The posterior's mean and variance, beta tilde, between consecutive timesteps.

    Source: Ho et al. 2020 (arXiv 2006.11239), equations 6 and 7.
    """
    alpha, next_alpha = levels.signal[:-1] ** 2, levels.signal[1:] ** 2
    step_alpha = alpha / next_alpha
    next_share = (1.0 - next_alpha) / (1.0 - alpha)
    return Factors(
        latents=np.sqrt(step_alpha) * next_share,
        x0=np.sqrt(next_alpha) * (1.0 - step_alpha) / (1.0 - alpha),
        noise=np.sqrt(next_share * (1.0 - step_alpha)),
    )


def ddim(levels: Levels, trajectory: Trajectory) -> Factors:
    """Deterministic with eta 0, with DDPM's variance at eta 1.

    Each step goes down by num_train_steps // num_steps, also where rounding set timesteps closer: as diffusers does.

    Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.
    """
    following = levels.timesteps.astype(int) - trajectory.num_train_steps // trajectory.num_steps
    alpha = levels.signal[:-1] ** 2
    next_alpha = np.where(following >= 0, trajectory.alphas_cumprod[np.maximum(following, 0)], trajectory.final_alpha)
    variance = trajectory.eta**2 * (1.0 - next_alpha) / (1.0 - alpha) * (1.0 - alpha / next_alpha)
    return Factors(
        x0=np.sqrt(next_alpha),
        eps=np.sqrt(np.maximum(1.0 - next_alpha - variance, 0.0)),
        noise=np.sqrt(variance) if trajectory.eta else None,
    )


def euler(levels: Levels, trajectory: Trajectory) -> Factors:
    """A straight line in sigma: x + (next_sigma - sigma) * eps = x0 + next_sigma * eps.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without its second-order correction.
    """
    return Factors(x0=levels.signal[1:], eps=levels.noise[1:])


def euler_ancestral(levels: Levels, trajectory: Trajectory) -> Factors:
    """Euler to less noise than the next level has, and fresh noise for the rest: DDPM's variance, in terms of sigma.

    Source: Song et al. 2021 (arXiv 2011.13456), appendix F; k-diffusion's get_ancestral_step.
    """
    sigmas = levels.sigmas
    up = sigmas[1:] * np.sqrt(1.0 - (sigmas[1:] / sigmas[:-1]) ** 2)
    down = sigmas[1:] ** 2 / sigmas[:-1]  # sqrt(next_sigma^2 - up^2)
    return Factors(x0=levels.signal[1:], eps=levels.signal[1:] * down, noise=levels.signal[1:] * up)


def lcm(levels: Levels, trajectory: Trajectory) -> Factors:
    """The consistency function's clean latents, noised again to the next level.

    Source: Luo et al. 2023 (arXiv 2310.04378), section 4.1 and multistep sampling; the boundary factors with
    sigma_data = 0.5 and timesteps times 10, as LCMScheduler of diffusers.
    """
    scaled, sigma_data = 10.0 * levels.timesteps, 0.5
    skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    out = scaled / np.sqrt(scaled**2 + sigma_data**2)
    return Factors(latents=levels.signal[1:] * skip, x0=levels.signal[1:] * out, noise=levels.noise[1:])
