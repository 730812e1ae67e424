"""The base model of a run, in whatever form it lies: a diffusers folder, or one file with its original names."""

from collections.abc import Sequence
from pathlib import Path

from pidiff_jax.convert.diffusers_folder import check_files, open_diffusers_folder
from pidiff_jax.convert.lora import with_loras
from pidiff_jax.convert.recognise import recognise
from pidiff_jax.convert.single_file import open_single_file
from pidiff_jax.convert.stable_diffusion import StableDiffusion


def check_base_model(path: Path, variant: str | None = None) -> None:
    """Looks whether there is a base model, with all of its files; reads no weights.

    Raises:
        FileNotFoundError, ValueError: says what is missing, or what is there instead.
    """
    if path.is_dir() or not path.exists():
        check_files(path, variant)
    elif (found := recognise(path)).kind != "single_file":
        raise ValueError(f"expected a Stable Diffusion model at {path}, got {found.title}; give the base model's path")


def open_base_model(
    path: Path,
    *,
    variant: str | None = None,
    tokenizer: Path | None = None,
    prediction_type: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
) -> StableDiffusion:
    """Opens a folder (see `open_diffusers_folder`) or a file (see `open_single_file`); reads no weights.

    loras: files and scales, merged when the weights are read (see `with_loras`).

    Raises:
        FileNotFoundError: nothing is there, or a part is missing.
        ValueError: another model, an option that this form of model doesn't have, or a LoRA that doesn't fit.
    """
    return with_loras(_open(path, variant, tokenizer, prediction_type), loras)


def _open(path: Path, variant: str | None, tokenizer: Path | None, prediction_type: str | None) -> StableDiffusion:
    if path.is_dir():
        if tokenizer is not None or prediction_type is not None:
            raise ValueError(
                f"expected no tokenizer and no prediction_type for the diffusers folder {path}, which has its own; leave them "
                "out"
            )
        return open_diffusers_folder(path, variant=variant)
    if variant is not None:
        raise ValueError(f"expected no variant for {path}, which is no folder, got {variant!r}; leave it out")
    return open_single_file(path, tokenizer=tokenizer, prediction_type=prediction_type)
