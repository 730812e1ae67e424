"""Trajectories of diffusers' schedulers, for a network that is a formula and noise that is given."""

import functools
import sys
import warnings
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from pidiff_jax.diffusion.schedule import NoiseSchedule

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = NoiseSchedule.scaled_linear()
FOREIGN_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
NOISE = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(3), len(NOISE))

_KARRAS = {"use_karras_sigmas": True}
_SCHEDULERS = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, _KARRAS),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, _KARRAS),
    "unipc": (UniPCMultistepScheduler, {}),
    "unipc_karras": (UniPCMultistepScheduler, _KARRAS),
    "lcm": (LCMScheduler, {}),
}


def denoise(latents, timestep, number=None):
    return jnp.tanh(0.7 * latents) + 0.1 * jnp.sin(timestep / 100.0)


def start_noise(prediction_type):
    """Noise whose trajectory ends near one: `denoise` sees less noise than there is, and the rest grows 20-fold."""
    return 0.3 * NOISE if prediction_type == "eps" else NOISE


@functools.cache
def fresh_noise():
    """What our samplers draw with `KEYS`: (steps, b, h, w, c)."""
    draw = jax.jit(lambda key, number: jax.random.normal(jax.random.fold_in(key, number), NOISE.shape[1:]))
    return np.array([[draw(key, number) for key in KEYS] for number in range(50)])


def scheduler_of(name, prediction_type, num_steps, **settings):
    kind, own = _SCHEDULERS[name]
    settings = STABLE_DIFFUSION | own | settings
    with warnings.catch_warnings():  # they give tensors to NumPy in a way that is going away
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = kind(**settings, prediction_type=FOREIGN_TYPES[prediction_type])
        scheduler.set_timesteps(num_steps)
    return scheduler


def trajectory(name, prediction_type, num_steps, *, eta=0.0, first_step=0, clean=None, **settings):
    """(timesteps, final latents) with diffusers; from noise, or from clean latents where it starts in the middle."""
    scheduler = scheduler_of(name, prediction_type, num_steps, **settings)
    latents = torch.tensor(start_noise(prediction_type))
    timesteps = scheduler.timesteps[first_step:]
    if clean is None:
        latents = latents * scheduler.init_noise_sigma
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first_step)
        latents = scheduler.add_noise(torch.tensor(clean), latents, timesteps[:1])
    options = {"eta": eta} if eta else {}
    for number, timestep in enumerate(timesteps, first_step):
        seen = scheduler.scale_model_input(latents, timestep)
        prediction = torch.tanh(0.7 * seen) + 0.1 * torch.sin(timestep / 100.0)
        with _drawing(scheduler, number):
            latents = scheduler.step(prediction.float(), timestep, latents, **options).prev_sample
    return timesteps.numpy(), latents.numpy()


@contextmanager
def _drawing(scheduler, number):
    """Gives a scheduler our noise in place of its own."""
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[type(scheduler).__module__]
        patch.setattr(module, "randn_tensor", lambda *_, **__: torch.tensor(fresh_noise()[number]), raising=False)
        yield


def assert_same_to_float32(ours, expected, tolerance=1e-5):
    """To the scale of the latents."""
    scale = np.abs(expected).max()
    assert scale > 0.3
    assert np.abs(np.asarray(ours) - expected).max() <= tolerance * scale
