"""DDIM trajectories are those of diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from pidiff_jax.diffusion.parameterisation import target
from pidiff_jax.diffusion.samplers import ddim_sample, ddim_timesteps
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = NoiseSchedule.scaled_linear()
FOREIGN_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)


def start_of(prediction_type):
    """Noise whose trajectory ends near one: `denoise` sees less noise than there is, and the rest grows 20-fold."""
    return 0.3 * NOISE if prediction_type == "eps" else NOISE


def diffusers_trajectory(settings, prediction_type, num_steps, eta=0.0, step_noise=None):
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, prediction_type=FOREIGN_TYPES[prediction_type], **settings)
    scheduler.set_timesteps(num_steps)
    latents = torch.tensor(start_of(prediction_type))
    for number, timestep in enumerate(scheduler.timesteps):
        prediction = torch.tanh(0.7 * latents) + 0.1 * torch.sin(timestep / 100.0)
        fresh = None if step_noise is None else torch.tensor(step_noise[number])
        latents = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=fresh).prev_sample
    return scheduler.timesteps.numpy(), latents.numpy()


def denoise(latents, timestep):
    return jnp.tanh(0.7 * latents) + 0.1 * jnp.sin(timestep / 100.0)


def assert_same_to_float32(ours, expected):
    assert np.abs(expected).max() > 0.4
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction_type", FOREIGN_TYPES)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_twenty_steps_agree_with_diffusers(spacing, prediction_type):
    settings = {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    foreign_timesteps, expected = diffusers_trajectory(settings, prediction_type, 20)
    timesteps = ddim_timesteps(1000, 20, spacing=spacing, steps_offset=1)
    np.testing.assert_array_equal(timesteps, foreign_timesteps)
    sample = jax.jit(
        lambda noise: ddim_sample(denoise, noise, SCHEDULE, timesteps, prediction_type, set_alpha_to_one=False)
    )
    assert_same_to_float32(sample(start_of(prediction_type)), expected)


def test_steps_that_do_not_divide_the_schedule_agree_with_diffusers():
    settings = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    foreign_timesteps, expected = diffusers_trajectory(settings, "v", 30)
    timesteps = ddim_timesteps(1000, 30, spacing="trailing")
    np.testing.assert_array_equal(timesteps, foreign_timesteps)
    assert_same_to_float32(ddim_sample(denoise, jnp.asarray(NOISE), SCHEDULE, timesteps, "v"), expected)


def test_noise_of_eta_and_clipping_agree_with_diffusers():
    key, num_steps = jax.random.key(3), 20
    step_noise = [np.array(jax.random.normal(k, NOISE.shape)) for k in jax.random.split(key, num_steps)]
    settings = {"clip_sample": True, "clip_sample_range": 0.8, "set_alpha_to_one": True}
    _, expected = diffusers_trajectory(settings, "x0", num_steps, 0.6, step_noise)
    timesteps = ddim_timesteps(1000, num_steps)
    ours = ddim_sample(denoise, jnp.asarray(NOISE), SCHEDULE, timesteps, "x0", eta=0.6, key=key, clip_x0=0.8)
    assert_same_to_float32(ours, expected)


@pytest.mark.parametrize("prediction_type", FOREIGN_TYPES)
def test_a_perfect_network_finds_the_latents(prediction_type):
    latents = jax.random.normal(jax.random.key(1), NOISE.shape)
    timesteps = ddim_timesteps(1000, 10, spacing="trailing")
    start = add_noise(SCHEDULE, latents, jnp.asarray(NOISE), jnp.int32(timesteps[0]))

    def perfect(noisy, timestep):
        alpha = SCHEDULE.alphas_cumprod[timestep]
        noise = (noisy - jnp.sqrt(alpha) * latents) / jnp.sqrt(1 - alpha)
        return target(SCHEDULE, latents, noise, timestep, prediction_type)

    found = ddim_sample(perfect, start, SCHEDULE, timesteps, prediction_type)
    np.testing.assert_allclose(found, latents, atol=1e-4)


def test_aux_of_all_steps_is_stacked():
    timesteps = ddim_timesteps(1000, 5)
    latents, seen = ddim_sample(
        lambda x, t: (denoise(x, t), t), jnp.asarray(NOISE), SCHEDULE, timesteps, "eps", has_aux=True
    )
    np.testing.assert_array_equal(seen, timesteps)
    np.testing.assert_array_equal(latents, ddim_sample(denoise, jnp.asarray(NOISE), SCHEDULE, timesteps, "eps"))


def test_zero_terminal_snr_starts_from_noise_alone():
    schedule = NoiseSchedule.cosine().zero_terminal_snr()
    timesteps = ddim_timesteps(1000, 8, spacing="trailing")
    assert np.isfinite(ddim_sample(denoise, jnp.asarray(NOISE), schedule, timesteps, "v")).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddim_timesteps(1000, 0), "1 to 1000"),
        (lambda: ddim_timesteps(1000, 10, spacing="even"), "'leading', 'trailing' or 'linspace', got 'even'"),
        (lambda: ddim_timesteps(1000, 1000, steps_offset=1), "below 1000, got 1000"),
        (lambda: ddim_sample(denoise, jnp.asarray(NOISE), SCHEDULE, ddim_timesteps(1000, 2), "eps", eta=1.0), "key"),
    ],
)
def test_impossible_sampling_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
