"""The networks that turn photographs into records, loaded from their published files."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPTokenizer

from data_pipeline.prepare.encode import Encoders
from pidiff_jax.convert.clip_tokenizer import load_tokenizer, tokenize
from pidiff_jax.convert.diffusers_folder import load_vae
from pidiff_jax.convert.ir_se import load_e4e_checkpoint
from pidiff_jax.convert.single_file import open_single_file
from pidiff_jax.convert.stable_diffusion import StableDiffusion
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec, encode_wplus
from pidiff_jax.models.vae import AutoencoderKL, VAESpec
from pidiff_jax.paths import unflatten


def check_networks(
    base: Path | str, e4e: Path | str, variant: str | None = None, tokenizer: Path | str | None = None
) -> None:
    """Checks that there is something to load, without reading weights; see `load_encoders`.

    Raises:
        FileNotFoundError: there is no Stable Diffusion folder or file at `base`, or no file at `e4e`.
        ValueError: the file at `base` is of another model, or the options don't fit a folder or a file.
    """
    _check_base(base, variant, tokenizer)
    if Path(base).is_file():
        _open_file(Path(base), tokenizer)
    if not Path(e4e).is_file():
        raise FileNotFoundError(
            f"expected a checkpoint of encoder4editing at {e4e}, found none; download it and pass its path"
        )


def _check_base(base: Path | str, variant: str | None, tokenizer: Path | str | None) -> None:
    if not Path(base).is_file() and not (Path(base) / "vae" / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a Stable Diffusion folder in diffusers' format (with vae/config.json), or one file, at {base}, found "
            "none; download one and pass its path"
        )
    if Path(base).is_file() and variant is not None:
        raise ValueError(f"expected no variant for {base}, which is no folder, got {variant!r}; leave --variant out")
    if Path(base).is_dir() and tokenizer is not None:
        raise ValueError(f"expected no tokenizer for the folder {base}, which has its own; leave --tokenizer out")


def load_encoders(
    base: Path | str,
    e4e: Path | str,
    e4e_spec: E4eSpec = E4eSpec(),  # noqa: B008 (frozen)
    variant: str | None = None,
    tokenizer: Path | str | None = None,
) -> Encoders:
    """VAE and tokenizer of Stable Diffusion, and an e4e encoder.

    Args:
        base: a folder in diffusers' format, or one file with the original names; only its VAE and tokenizer are read.
        e4e: checkpoint of encoder4editing (see `load_e4e_checkpoint`).
        e4e_spec: sizes of the encoder; the default is the published one for FFHQ, 18 codes of 512.
        variant: of the VAE's weight files, such as "fp16"; None: the plain ones, or the only ones there are.
        tokenizer: folder of the tokenizer of a model in one file; None: CLIP's own (see `clip_tokenizer`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one that doesn't fit.
    """
    _check_base(base, variant, tokenizer)
    if Path(base).is_file():
        words, vae_spec, vae_params = _read_file(Path(base), tokenizer)
    else:
        words, vae_spec, vae_params = _read_folder(Path(base), variant)
    vae, encoder = AutoencoderKL(vae_spec), E4eEncoder(e4e_spec)
    e4e_params, latent_avg = load_e4e_checkpoint(e4e, e4e_spec)
    encode = jax.jit(lambda params, pixels: vae.apply({"params": params}, pixels, method="encode"))
    invert = jax.jit(lambda params, faces: encode_wplus(encoder, params, jnp.asarray(latent_avg), faces))
    return Encoders(
        latents=lambda pixels: encode(vae_params, pixels),
        wplus=lambda faces: invert(e4e_params, faces),
        tokenize=lambda captions: tokenize(words, list(captions)),
    )


def _read_folder(base: Path, variant: str | None) -> tuple[CLIPTokenizer, VAESpec, dict[str, Any]]:
    words = load_tokenizer(base / "tokenizer")
    try:
        return words, *load_vae(base / "vae", variant)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected the VAE's weights in {base}, missing {error}; complete the folder"
        ) from error


def _read_file(base: Path, tokenizer: Path | str | None) -> tuple[CLIPTokenizer, VAESpec, dict[str, Any]]:
    model = _open_file(base, tokenizer)
    return model.tokenizer, model.vae_spec, unflatten(dict(model.read().under("vae/").cast(np.float32)))


def _open_file(base: Path, tokenizer: Path | str | None) -> StableDiffusion:
    return open_single_file(base, tokenizer=tokenizer, prediction_type="eps")  # what is predicted doesn't matter here
