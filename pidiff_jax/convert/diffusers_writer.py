"""Writes a text-to-image model as a folder that diffusers' `StableDiffusionPipeline.from_pretrained` opens.

The counterpart of `diffusers_folder.py`, which reads what is written here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from pidiff_jax.convert.clip import clip_table
from pidiff_jax.convert.diffusers_config import (
    ScheduleSettings,
    scheduler_config,
    text_config,
    unet_config,
    vae_config,
)
from pidiff_jax.convert.drafts import check_free, draft_of
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.table import foreign_lazily
from pidiff_jax.convert.unet import unet_table
from pidiff_jax.convert.vae import vae_table
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec
from pidiff_jax.paths import flatten

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
    dtype: np.dtype | type | None = np.float32,
    variant: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes configs, tokenizer and weights; the folder appears as a whole or not at all.

    Args:
        path: of the new folder.
        params: {"unet", "vae", "text_encoder"}, or lazy tensors by path; an identity branch of the UNet stays behind.
        latent_size: height and width of the latents that the model was made for.
        dtype: of the weights; None keeps theirs.
        variant: in the names of the weight files, for example "fp16"; None: plain names.
        metadata: in the header of every weight file.

    Raises:
        FileExistsError: something is at `path` already.
        ValueError: parameters that don't fit the specs.
    """
    path = Path(path)
    check_free(path)
    leaves = LazyTensors.of(params if isinstance(params, LazyTensors) else flatten(params))
    base = leaves.only(name for name in leaves if not name.endswith("_id/kernel")).cast(dtype)
    weights = {
        "unet/diffusion_pytorch_model": foreign_lazily(unet_table(unet_spec), base.under("unet/")),
        "vae/diffusion_pytorch_model": foreign_lazily(vae_table(vae_spec), base.under("vae/")),
        "text_encoder/model": foreign_lazily(clip_table(text_spec), base.under("text_encoder/")),
    }
    files = {
        "model_index.json": _INDEX,
        "unet/config.json": unet_config(unet_spec, latent_size),
        "vae/config.json": vae_config(vae_spec, latent_size),
        "text_encoder/config.json": text_config(text_spec, tokenizer),
        "scheduler/scheduler_config.json": scheduler_config(schedule),
    }
    with draft_of(path) as folder:
        for name, config in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, tensors in weights.items():
            ending = f".{variant}.safetensors" if variant else ".safetensors"
            write_safetensors(folder / f"{name}{ending}", tensors, {**(metadata or {}), "format": "pt"})
        tokenizer.save_pretrained(folder / "tokenizer")
