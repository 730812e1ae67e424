"""Noise schedules are those of diffusers; steps keep the variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler

from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise, snr

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES = {
    "scaled_linear": (STABLE_DIFFUSION, NoiseSchedule.scaled_linear),
    "linear": ({"beta_schedule": "linear"}, NoiseSchedule.linear),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, NoiseSchedule.cosine),
    "zero_terminal_snr": (
        STABLE_DIFFUSION | {"rescale_betas_zero_snr": True},
        lambda: NoiseSchedule.scaled_linear().zero_terminal_snr(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedules_agree_with_diffusers(name):
    settings, make = CASES[name]
    expected = DDIMScheduler(**settings).alphas_cumprod.numpy()
    np.testing.assert_allclose(make().alphas_cumprod, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_noise_grows_with_every_step(name):
    alphas = np.asarray(CASES[name][1]().alphas_cumprod)
    assert (np.diff(alphas) < 0).all() and 0.99 < alphas[0] < 1 and 0 <= alphas[-1] < 0.01


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    before = NoiseSchedule.scaled_linear()
    after = before.zero_terminal_snr()
    assert after.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(after.alphas_cumprod[0], before.alphas_cumprod[0], rtol=1e-6)
    assert snr(after, jnp.array([999]))[0] == 0


def test_noisy_latents_keep_unit_variance():
    latents, noise = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 4))
    noisy = add_noise(NoiseSchedule.cosine(), latents, noise, jnp.array([0, 300, 600, 999]))
    np.testing.assert_allclose(noisy.std((1, 2, 3)), 1.0, atol=0.05)
    np.testing.assert_allclose(noisy[3], noise[3], atol=1e-3)
    np.testing.assert_allclose(noisy[0], latents[0], atol=0.05)


def test_one_timestep_serves_all_samples():
    latents, noise = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    schedule = NoiseSchedule.scaled_linear()
    together = add_noise(schedule, latents, noise, jnp.int32(7))
    np.testing.assert_array_equal(together, add_noise(schedule, latents, noise, jnp.full((3,), 7)))


def test_a_schedule_passes_through_transformations():
    schedule = NoiseSchedule.linear(num_steps=10)
    returned = jax.jit(lambda s: s)(schedule)
    np.testing.assert_array_equal(returned.alphas_cumprod, schedule.alphas_cumprod)
    assert jax.eval_shape(lambda s: s, schedule).num_steps == 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseSchedule.linear(0.02, 1e-4),
        lambda: NoiseSchedule.scaled_linear(num_steps=0),
        lambda: NoiseSchedule.cosine(0),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(ValueError, match="expected .* got"):
        make()
