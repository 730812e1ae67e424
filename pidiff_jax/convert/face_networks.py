"""Checkpoints of face networks to safetensors: what is read here, under its own names, without the optimizer."""

from collections.abc import Mapping
from pathlib import Path

from pidiff_jax.convert.files import naming, open_tensors, write_safetensors
from pidiff_jax.convert.ir_se import IGNORED, arcface_table, e4e_table
from pidiff_jax.convert.stylegan2 import load_stylegan2_checkpoint, stylegan2_to_pytorch
from pidiff_jax.convert.table import ours_lazily
from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.e4e import E4eSpec
from pidiff_jax.models.stylegan2 import StyleGan2Spec

AVERAGE = "latent_avg"


def rewrite_e4e(source: Path, output: Path, spec: E4eSpec = E4eSpec()) -> None:  # noqa: B008 (frozen)
    """The encoder and the average code of an encoder4editing checkpoint, as `load_e4e_checkpoint` reads them.

    Raises:
        FileExistsError: something is at `output` already.
        ValueError: names every missing, unknown and misshapen tensor of the encoder.
    """
    tensors = open_tensors(source)
    inside = tensors.under("state_dict.") or tensors
    encoder = inside.only(name for name in inside if name.startswith("encoder."))
    with naming(source):
        entries = e4e_table(spec)
        ours_lazily(entries, encoder, IGNORED)
    kept = encoder.only(entry.foreign for entry in entries)
    write_safetensors(output, kept.extended(tensors.only([AVERAGE])))


def rewrite_arcface(source: Path, output: Path, spec: ArcFaceSpec = ArcFaceSpec()) -> None:  # noqa: B008 (frozen)
    """A recogniser's state dict, as `load_arcface_checkpoint` reads it.

    Raises:
        FileExistsError: something is at `output` already.
        ValueError: names every missing, unknown and misshapen tensor.
    """
    tensors = open_tensors(source)
    with naming(source):
        entries = arcface_table(spec)
        ours_lazily(entries, tensors, IGNORED)
    write_safetensors(output, tensors.only(entry.foreign for entry in entries))


def rewrite_stylegan2(source: Path, output: Path) -> None:
    """A generator, its fixed noise and its average code, in float32, as `load_stylegan2_checkpoint` reads them.

    Raises:
        FileExistsError: something is at `output` already.
        ValueError: names every missing, unknown and misshapen tensor.
    """
    structs = open_tensors(source).structs
    with naming(source):
        spec = stylegan2_spec({name: tuple(struct.shape) for name, struct in structs.items()})
    weights = load_stylegan2_checkpoint(source, spec)
    tensors = stylegan2_to_pytorch(spec, weights.mapping, weights.synthesis, weights.noise)
    extra = {} if weights.latent_avg is None else {AVERAGE: weights.latent_avg}
    write_safetensors(output, tensors | extra)


def stylegan2_spec(shapes: Mapping[str, tuple[int, ...]]) -> StyleGan2Spec:
    """The sizes of the generator in a checkpoint, whatever it calls its place."""
    constant = next(name for name in shapes if name.endswith("input.input"))
    prefix = constant.removesuffix("input.input")
    channels = [shapes[constant][1]]
    while (name := f"{prefix}convs.{2 * len(channels) - 2}.conv.weight") in shapes:
        channels.append(shapes[name][1])
    layers = sum(name.startswith(f"{prefix}style.") and name.endswith(".weight") for name in shapes)
    if not layers:
        raise ValueError(
            "expected a mapping network (style.1.weight, ...) beside the generator, got none; take the whole file"
        )
    size, width = 4 * 2 ** (len(channels) - 1), shapes[f"{prefix}style.1.weight"][0]
    return StyleGan2Spec(size=size, style_dim=width, num_mapping_layers=layers, channels=tuple(channels))


def check_output(output: Path) -> None:
    """Raises ValueError unless a network is to be written as safetensors."""
    if output.suffix != ".safetensors":
        raise ValueError(f"expected --output to end in .safetensors for one network, got {output}; rename it")
