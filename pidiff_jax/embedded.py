"""The embedded models: tiny versions of every network, trained on the portraits world and shipped in the package."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import IdentityAttentionSpec, UNetSpec
from pidiff_jax.models.vae import VAESpec

WEIGHTS = Path(__file__).parent / "weights"
RESOLUTION_PX = 64
TEXT_LENGTH = 16
PREDICTION_TYPE = "v"
NUM_WPLUS_LAYERS, WPLUS_DIM, TOKEN_DIM = 10, 64, 64

VAE = VAESpec(
    block_out_channels=(96,), layers_per_block=1, latent_channels=8, norm_num_groups=16, scaling_factor=0.72,
    patch_size=4, mid_attention=False,
)  # fmt: skip


def text_spec(vocab_size: int) -> ClipTextSpec:
    """The caption encoder; its vocabulary is the portraits tokenizer's."""
    return ClipTextSpec(
        vocab_size=vocab_size,
        width=TOKEN_DIM,
        num_layers=2,
        num_heads=4,
        mlp_width=4 * TOKEN_DIM,
        max_length=TEXT_LENGTH,
    )


def unet_spec(identity: IdentityAttentionSpec | None = None) -> UNetSpec:
    """The latent diffusion UNet, 16x16 latents of 8 channels."""
    return UNetSpec(
        in_channels=VAE.latent_channels, out_channels=VAE.latent_channels, block_out_channels=(64, 96, 112),
        layers_per_block=1, down_attention=(True, True, False), num_heads=(4, 4, 4), cross_attention_dim=TOKEN_DIM,
        norm_num_groups=16, identity=identity,
    )  # fmt: skip


def save_weights(path: Path, params: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes parameters as float16 safetensors with a model card (JSON) in the metadata; never overwrites."""
    flat = traverse_util.flatten_dict(nn.meta.unbox(params), sep="/")
    tensors = {name: np.asarray(value, np.float16) for name, value in flat.items()}
    write_safetensors(path, tensors, {"model_card": json.dumps(card, sort_keys=True)})


def load_weights(name: str, folder: Path | str | None = None) -> dict[str, Any]:
    """Reads `<folder>/<name>.safetensors` (default: the shipped ones) as float32 parameters.

    Raises:
        FileNotFoundError: the file is not there; names the experiment that makes it.
    """
    path = Path(folder or WEIGHTS) / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected embedded weights at {path}, found none; make them with the experiments portraits_base.py, "
            "portraits_wplus.py and portraits_judges.py, or reinstall the package"
        )
    flat = {key: jnp.asarray(value, jnp.float32) for key, value in read_tensors(path).items()}
    return jax.tree.map(lambda x: x, traverse_util.unflatten_dict(flat, sep="/"))
