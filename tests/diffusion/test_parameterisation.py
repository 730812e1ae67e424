"""eps, v and x0 say the same, and guidance moves between predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from pidiff_jax.diffusion.guidance import classifier_free, rescale_guidance
from pidiff_jax.diffusion.parameterisation import PREDICTION_TYPES, target, to_eps, to_x0
from pidiff_jax.diffusion.schedule import NoiseSchedule, add_noise, signal_and_noise_scales

SCHEDULE = NoiseSchedule.scaled_linear()
TIMESTEPS = jnp.array([0, 250, 700, 999])


def latents_and_noise():
    return jax.random.normal(jax.random.key(0), (2, 4, 6, 6, 3))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_gives_latents_and_noise_back(prediction_type):
    latents, noise = latents_and_noise()
    noisy = add_noise(SCHEDULE, latents, noise, TIMESTEPS)
    perfect = target(SCHEDULE, latents, noise, TIMESTEPS, prediction_type)
    scales = signal_and_noise_scales(SCHEDULE, TIMESTEPS, latents.ndim)
    np.testing.assert_allclose(to_x0(perfect, noisy, *scales, prediction_type), latents, atol=1e-4)
    np.testing.assert_allclose(to_eps(perfect, noisy, *scales, prediction_type), noise, atol=1e-4)


def test_velocity_agrees_with_diffusers():
    latents, noise = latents_and_noise()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    arrays = (torch.tensor(np.asarray(x)) for x in (latents, noise, TIMESTEPS))
    expected = scheduler.get_velocity(*arrays).numpy()
    np.testing.assert_allclose(target(SCHEDULE, latents, noise, TIMESTEPS, "v"), expected, atol=1e-5)


def test_unknown_prediction_types_are_refused_by_name():
    latents, noise = latents_and_noise()
    with pytest.raises(ValueError, match="eps, v, x0.*'epsilon'"):
        target(SCHEDULE, latents, noise, TIMESTEPS, "epsilon")


def test_guidance_scales_zero_and_one_choose_a_prediction():
    unconditional, conditional = latents_and_noise()
    np.testing.assert_allclose(classifier_free(unconditional, conditional, 0), unconditional, atol=1e-6)
    np.testing.assert_allclose(classifier_free(unconditional, conditional, 1.0), conditional, atol=1e-6)


def test_guidance_rescaling_agrees_with_diffusers():
    unconditional, conditional = latents_and_noise()
    guided = classifier_free(unconditional, conditional, 7.5)
    expected = rescale_noise_cfg(*(torch.tensor(np.asarray(x)) for x in (guided, conditional)), 0.7).numpy()
    np.testing.assert_allclose(rescale_guidance(guided, conditional, 0.7), expected, atol=1e-5)
    np.testing.assert_array_equal(rescale_guidance(guided, conditional, 0.0), guided)
