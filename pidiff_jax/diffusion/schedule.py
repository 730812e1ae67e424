"""Noise schedules: how much of the picture and how much noise is left at each step of the diffusion process."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

# Nichol & Dhariwal cut the cosine schedule's betas here, so that the last step keeps a trace of the picture.
_MAX_BETA = 0.999


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noisy latents at step t are sqrt(alphas_cumprod[t]) * latents + sqrt(1 - alphas_cumprod[t]) * noise.

    `alphas_cumprod` is float32 of shape (num_steps,), from nearly 1 (no noise) at step 0 down to nearly 0; or whatever
    a transformation makes of the array, such as its shape struct.

    Source: Ho et al. 2020 (arXiv 2006.11239), equation 4.
    """

    alphas_cumprod: Any

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_steps: int = 1000) -> "NoiseSchedule":
        """Betas evenly spaced. Source: Ho et al. 2020 (arXiv 2006.11239), section 4."""
        _check_betas(beta_start, beta_end, num_steps)
        return cls._from_betas(np.linspace(beta_start, beta_end, num_steps))

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, num_steps: int = 1000
    ) -> "NoiseSchedule":
        """Square roots of the betas evenly spaced; the defaults are Stable Diffusion's.

        Source: Rombach et al. 2022, configs/stable-diffusion/v1-inference.yaml of CompVis/stable-diffusion.
        """
        _check_betas(beta_start, beta_end, num_steps)
        return cls._from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2)

    @classmethod
    def cosine(cls, num_steps: int = 1000) -> "NoiseSchedule":
        """The product of alphas falls as a squared cosine.

        Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17.
        """
        if num_steps < 1:
            raise ValueError(f"expected at least 1 diffusion step, got {num_steps}; 1000 is usual")
        times = np.arange(num_steps + 1) / num_steps
        alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls._from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], _MAX_BETA))

    @classmethod
    def _from_betas(cls, betas: np.ndarray) -> "NoiseSchedule":
        return cls(jnp.asarray(np.cumprod(1.0 - betas), jnp.float32))

    @property
    def num_steps(self) -> int:
        """Steps of the training process, usually 1000; timesteps are 0 .. num_steps - 1."""
        return self.alphas_cumprod.shape[0]

    def zero_terminal_snr(self) -> "NoiseSchedule":
        """The same schedule, rescaled so that nothing of the picture is left at the last step.

        Only for networks that predict v or x0: from pure noise, the noise says nothing about the picture.

        Source: Lin et al. 2024 (arXiv 2305.08891), algorithm 1.
        """
        roots = jnp.sqrt(self.alphas_cumprod)
        first, last = roots[0], roots[-1]
        return NoiseSchedule(jnp.square((roots - last) * (first / (first - last))))


def add_noise(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[ArrayLike, "*b"],
) -> Float[Array, "b h w c"]:
    """Noisy latents at each sample's timestep (b,), or at one timestep () for all."""
    signal, sigma = signal_and_noise_scales(schedule, timesteps, latents.ndim)
    return signal * latents + sigma * noise


def snr(schedule: NoiseSchedule, timesteps: Int[ArrayLike, "*b"]) -> Float[Array, "*b"]:
    """Signal-to-noise ratio (of powers): alphas_cumprod / (1 - alphas_cumprod)."""
    alphas = schedule.alphas_cumprod[jnp.asarray(timesteps)]
    return alphas / (1.0 - alphas)


def signal_and_noise_scales(
    schedule: NoiseSchedule, timesteps: Int[ArrayLike, "*b"], ndim: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod), with trailing axes to broadcast against `ndim` axes."""
    alphas = schedule.alphas_cumprod[jnp.asarray(timesteps)]
    if alphas.ndim:
        alphas = alphas.reshape(alphas.shape + (1,) * (ndim - alphas.ndim))
    return jnp.sqrt(alphas), jnp.sqrt(1.0 - alphas)


def _check_betas(beta_start: float, beta_end: float, num_steps: int) -> None:
    if not 0.0 < beta_start <= beta_end < 1.0 or num_steps < 1:
        raise ValueError(
            f"expected 0 < beta_start <= beta_end < 1 and at least 1 diffusion step, got beta_start={beta_start}, "
            f"beta_end={beta_end}, num_steps={num_steps}; Stable Diffusion has 0.00085, 0.012 and 1000"
        )
