"""Writes a text-to-image model as a folder that diffusers' `StableDiffusionPipeline.from_pretrained` opens.

The counterpart of `diffusers_folder.py`, which reads what is written here.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from pidiff_jax.convert.clip import clip_to_transformers
from pidiff_jax.convert.diffusers_config import (
    ScheduleSettings,
    scheduler_config,
    text_config,
    unet_config,
    vae_config,
)
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.table import to_foreign
from pidiff_jax.convert.unet import split_identity, unet_table
from pidiff_jax.convert.vae import vae_to_diffusers
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec

# The classes that diffusers makes of the parts.
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_diffusers_folder(
    path: Path | str,
    params: Mapping[str, Any],
    *,
    unet_spec: UNetSpec,
    vae_spec: VAESpec,
    text_spec: ClipTextSpec,
    tokenizer: CLIPTokenizer,
    schedule: ScheduleSettings,
    latent_size: tuple[int, int],
    dtype: np.dtype | type = np.float32,
) -> None:
    """Writes configs, tokenizer and weights; the folder appears as a whole or not at all.

    Args:
        path: of the new folder.
        params: {"unet", "vae", "text_encoder"}; an identity branch of the UNet stays behind.
        latent_size: height and width of the latents that the model was made for.
        dtype: of the weights.

    Raises:
        FileExistsError: something is at `path` already.
        ValueError: parameters that don't fit the specs.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"expected nothing at {path}, got a file or folder; choose another name or remove it first"
        )
    weights = {
        "unet/diffusion_pytorch_model": to_foreign(unet_table(unet_spec), split_identity(params["unet"])[0]),
        "vae/diffusion_pytorch_model": vae_to_diffusers(vae_spec, params["vae"]),
        "text_encoder/model": clip_to_transformers(text_spec, params["text_encoder"]),
    }
    files = {
        "model_index.json": _INDEX,
        "unet/config.json": unet_config(unet_spec, latent_size),
        "vae/config.json": vae_config(vae_spec, latent_size),
        "text_encoder/config.json": text_config(text_spec, tokenizer),
        "scheduler/scheduler_config.json": scheduler_config(schedule),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as draft:
        folder = Path(draft) / path.name
        for name, config in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, tensors in weights.items():
            cast = {key: np.asarray(tensor).astype(dtype) for key, tensor in tensors.items()}
            write_safetensors(folder / f"{name}.safetensors", cast, {"format": "pt"})
        tokenizer.save_pretrained(folder / "tokenizer")
        os.rename(folder, path)
