"""A Stable Diffusion model in files of any layout: what is known of it before its weights are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from pidiff_jax.convert.diffusers_config import ScheduleSettings
from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec
from pidiff_jax.paths import unflatten


@dataclass(frozen=True)
class StableDiffusion:
    """A text-to-image model on disk: its specs, tokenizer and schedule; the parameters are read when they are asked for.

    latent_size: height and width of the latents that the model was made for.
    read: opens the weights: paths that begin with "unet/", "vae/" or "text_encoder/" to our arrays, one by one.
    """

    path: Path
    unet_spec: UNetSpec
    vae_spec: VAESpec
    text_spec: ClipTextSpec
    tokenizer: CLIPTokenizer
    schedule: ScheduleSettings
    latent_size: tuple[int, int]
    read: Callable[[], LazyTensors]

    def load(self, dtype: np.dtype | type | None = np.float32) -> dict[str, Any]:
        """Reads {"unet", "vae", "text_encoder"} as plain nested dicts of host arrays; dtype None keeps the files'.

        Raises:
            FileNotFoundError: lists every missing file.
            ValueError: a tensor that is missing, unknown or misshapen.
        """
        return unflatten(dict(self.read().cast(dtype)))
