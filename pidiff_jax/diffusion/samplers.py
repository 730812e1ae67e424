"""DDIM: from noise to latents in few steps, as one `lax.scan`.

Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16; spacings and last step as
schedulers/scheduling_ddim.py of diffusers.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pidiff_jax.diffusion.parameterisation import to_eps, to_x0
from pidiff_jax.diffusion.schedule import NoiseSchedule

Spacing = Literal["leading", "trailing", "linspace"]


def ddim_timesteps(
    num_train_steps: int, num_steps: int, *, spacing: str = "leading", steps_offset: int = 0
) -> Int[np.ndarray, " n"]:
    """The timesteps of a trajectory of `num_steps`, descending.

    Args:
        num_train_steps: steps of the noise schedule.
        num_steps: steps to take, at most `num_train_steps`.
        spacing: "leading" starts below the noisiest step and is what SD 1.x was published with; "trailing" starts at
            the noisiest step, as zero-terminal-SNR schedules need; "linspace" has both ends.
        steps_offset: added with "leading" only; 1 for Stable Diffusion.

    Source: Lin et al. 2024 (arXiv 2305.08891), table 2.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(f"expected 1 to {num_train_steps} sampling steps, got {num_steps}; 20 to 50 are usual")
    timesteps: np.ndarray
    if spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (num_train_steps // num_steps) + steps_offset
    elif spacing == "trailing":
        timesteps = np.round(np.arange(num_train_steps, 0, -num_train_steps / num_steps)) - 1
    elif spacing == "linspace":
        timesteps = np.round(np.linspace(0, num_train_steps - 1, num_steps))[::-1]
    else:
        raise ValueError(f"expected spacing 'leading', 'trailing' or 'linspace', got {spacing!r}; correct it")
    if timesteps[0] >= num_train_steps:
        raise ValueError(
            f"expected timesteps below {num_train_steps}, got {int(timesteps[0])} from steps_offset={steps_offset}; "
            "take fewer steps or a smaller offset"
        )
    return timesteps.astype(np.int32)


class _Step(NamedTuple):
    """What one step reads, precomputed for all steps: the factors of x0, eps and fresh noise in the next latents."""

    timestep: Int[Array, "*n"]
    x0_factor: Float[Array, "*n"]
    eps_factor: Float[Array, "*n"]
    noise_factor: Float[Array, "*n"]
    key: PRNGKeyArray | None


def ddim_sample(
    denoise_fn: Callable[[Float[Array, "b h w c"], Int[Array, ""]], Any],
    noise: Float[Array, "b h w c"],
    schedule: NoiseSchedule,
    timesteps: Int[np.ndarray, " n"],
    prediction_type: str,
    *,
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
    set_alpha_to_one: bool = True,
    clip_x0: float | None = None,
    has_aux: bool = False,
) -> Any:
    """Runs a whole trajectory and returns latents, or (latents, aux of all steps stacked) with `has_aux`.

    Each step goes down by `num_train_steps // num_steps`, also where rounding set timesteps closer: as diffusers does.

    Args:
        denoise_fn: (latents, timestep ()) -> the network's prediction, or (prediction, aux) with `has_aux`. Guidance
            belongs in here.
        noise: standard normal latents to start from.
        schedule: the one that the network was trained with.
        timesteps: from `ddim_timesteps`.
        prediction_type: what `denoise_fn` predicts: "eps", "v" or "x0".
        eta: 0 is deterministic DDIM, 1 has DDPM's variance.
        key: for the noise of eta > 0; needed then.
        set_alpha_to_one: the last step ends without noise; otherwise at training step 0 (Stable Diffusion).
        clip_x0: clips the predicted clean latents to [-clip_x0, clip_x0]; None does not.
        has_aux: see `denoise_fn`.
    """
    if eta and key is None:
        raise ValueError(f"expected a key for eta={eta}, got None; pass key=jax.random.key(seed), or eta=0")
    steps = _precompute(schedule, timesteps, eta, key, set_alpha_to_one)

    def step(latents: Array, s: _Step) -> tuple[Array, Any]:
        output = denoise_fn(latents, s.timestep)
        prediction, aux = output if has_aux else (output, None)
        prediction = prediction.astype(jnp.float32)
        x0 = to_x0(schedule, prediction, latents, s.timestep, prediction_type)
        eps = to_eps(schedule, prediction, latents, s.timestep, prediction_type)
        if clip_x0 is not None:
            x0 = jnp.clip(x0, -clip_x0, clip_x0)
        following = s.x0_factor * x0 + s.eps_factor * eps
        if s.key is not None:
            following += s.noise_factor * jax.random.normal(s.key, latents.shape)
        return following, aux

    latents, aux = jax.lax.scan(step, noise.astype(jnp.float32), steps)
    return (latents, aux) if has_aux else latents


def _precompute(
    schedule: NoiseSchedule, timesteps: np.ndarray, eta: float, key: PRNGKeyArray | None, set_alpha_to_one: bool
) -> _Step:
    timesteps = np.asarray(timesteps)
    alphas = schedule.alphas_cumprod
    following = timesteps - schedule.num_steps // len(timesteps)
    final = jnp.ones(()) if set_alpha_to_one else alphas[0]
    alpha, next_alpha = alphas[timesteps], jnp.where(following >= 0, alphas[np.maximum(following, 0)], final)
    variance = eta**2 * (1.0 - next_alpha) / (1.0 - alpha) * (1.0 - alpha / next_alpha)
    return _Step(
        timestep=jnp.asarray(timesteps, jnp.int32),
        x0_factor=jnp.sqrt(next_alpha),
        eps_factor=jnp.sqrt(jnp.maximum(1.0 - next_alpha - variance, 0.0)),
        noise_factor=jnp.sqrt(variance),
        key=jax.random.split(key, len(timesteps)) if eta and key is not None else None,
    )
