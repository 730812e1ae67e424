"""Samplers: from noise to latents in few steps. A method says where its steps lie and what a step weighs; one loop runs all."""

from pidiff_jax.diffusion.samplers.levels import FinalSigma, Spacing, spaced_timesteps
from pidiff_jax.diffusion.samplers.registry import SAMPLERS, check_sampler, make_sampler
from pidiff_jax.diffusion.samplers.sampler import Level, Method, Prediction, Sampler, State, Steps, advance, sample

__all__ = [
    "SAMPLERS", "FinalSigma", "Level", "Method", "Prediction", "Sampler", "Spacing", "State", "Steps", "advance",
    "check_sampler", "make_sampler", "sample", "spaced_timesteps",
]  # fmt: skip
