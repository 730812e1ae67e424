"""Samplers: from noise to latents in few steps. A method says where its steps lie and what a step weighs; one loop runs all."""

from pidiff_jax.diffusion.samplers.levels import FinalSigma, Spacing, spaced_timesteps
from pidiff_jax.diffusion.samplers.registry import SAMPLERS, make_sampler
from pidiff_jax.diffusion.samplers.sampler import Level, Prediction, Sampler, sample

__all__ = [
    "SAMPLERS", "FinalSigma", "Level", "Prediction", "Sampler", "Spacing", "make_sampler", "sample", "spaced_timesteps",
]  # fmt: skip
