"""From any model that is recognised to a file or folder that every command takes; what `launch.convert` does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from pidiff_jax.convert.base_model import open_base_model
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
from pidiff_jax.convert.drafts import check_free
from pidiff_jax.convert.face_networks import check_output, rewrite_arcface, rewrite_e4e, rewrite_stylegan2
from pidiff_jax.convert.recognise import recognise
from pidiff_jax.convert.single_file import write_single_file
from pidiff_jax.convert.stable_diffusion import StableDiffusion

_ADAPTERS = ("adapter", "ip_adapter", "wplus_adapter")
_NETWORKS: dict[str, Callable[[Path, Path], None]] = {
    "e4e": rewrite_e4e, "arcface": rewrite_arcface, "stylegan2": rewrite_stylegan2,
}  # fmt: skip
_DTYPES: dict[str, type] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def convert(
    source: Path,
    output: Path,
    *,
    variant: str | None = None,
    tokenizer: Path | None = None,
    prediction_type: str | None = None,
    dtype: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
) -> str:
    """Writes what lies at `source` to `output`; returns a line for people.

    A base model becomes a diffusers folder, or a file with the original names if `output` ends in .safetensors; a face network
    becomes a safetensors file with its own names, of what is read here.

    Args:
        variant: of a folder's weight files.
        tokenizer, prediction_type: see `open_single_file`.
        dtype: of the output, such as "float16"; None keeps the source's.
        loras: files and scales, merged into a base model.

    Raises:
        FileNotFoundError: no source, or a part of it is missing.
        FileExistsError: something is at `output`; it is left as it is.
        ValueError: a source that isn't supported, or can't be written so.
    """
    check_free(output)
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"expected --output outside of the folder {source}, got {output}; choose another place")
    found = recognise(source)
    if found.kind == "lora":
        raise ValueError(
            f"expected a base model at {source}, got a LoRA, which changes one; write --source=BASE --lora={source}:SCALE"
        )
    if found.kind in _ADAPTERS:
        raise ValueError(
            f"expected a model to convert, got {found.title} at {source}, which a training takes as it is; give it as "
            f"--config.init.adapter={source} of launch.train"
        )
    if found.kind in _NETWORKS:
        given = {"variant": variant, "tokenizer": tokenizer, "prediction_type": prediction_type, "dtype": dtype}
        if wrong := [f"--{name}" for name, value in given.items() if value is not None] + ["--lora"] * bool(loras):
            raise ValueError(f"expected no {', '.join(wrong)} for {found.title}, got {source} with it; leave it out")
        check_output(output)
        _NETWORKS[found.kind](source, output)
        return f"{source} is {found.title}; wrote {output}, its tensors as safetensors"
    model = open_base_model(source, variant=variant, tokenizer=tokenizer, prediction_type=prediction_type, loras=loras)
    form = write_base(output, model, None if dtype is None else _DTYPES[dtype])
    merged = "".join(f", with {path} merged in at {scale:g}" for path, scale in loras)
    return f"{source} is {found.title}; wrote {output}, {form}{merged}"


def write_base(output: Path, model: StableDiffusion, dtype: type | None) -> str:
    """Writes a base model in the form that the output's name says; returns the form's name."""
    if output.suffix == ".safetensors":
        write_single_file(output, model, dtype)
        return "one file with the original names"
    if output.suffix in (".ckpt", ".bin", ".pt"):
        raise ValueError(f"expected a folder or a .safetensors file as output, got {output}; other files can hold code")
    write_diffusers_folder(
        output,
        model.read(),
        unet_spec=model.unet_spec,
        vae_spec=model.vae_spec,
        text_spec=model.text_spec,
        tokenizer=model.tokenizer,
        schedule=model.schedule,
        latent_size=model.latent_size,
        dtype=dtype,
    )
    return "a folder in diffusers' format"
