"""Networks on the IR-SE backbone, e4e and ArcFace, from and to the PyTorch files that they are published as."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from pidiff_jax.convert.files import naming, read_tensors
from pidiff_jax.convert.stylegan2 import latent_average
from pidiff_jax.convert.table import Entry, derive_table, to_foreign, to_ours
from pidiff_jax.models.arcface import ArcFace, ArcFaceSpec
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec

# BatchNorm's statistics and PReLU's slope; the rest is called alike on both sides.
_LEAVES = ((r"\.mean$", ".running_mean"), (r"\.var$", ".running_var"), (r"\.slope$", ".weight"))
# Counters of PyTorch's BatchNorm, which nothing reads.
IGNORED = (r".*\.num_batches_tracked",)
_ENCODER = "encoder."


def e4e_table(spec: E4eSpec) -> list[Entry]:
    """The table between our e4e encoder and encoder4editing's `Encoder4Editing`, whose names start with "encoder."."""
    pixels = jnp.zeros((1, spec.input_size, spec.input_size, 3))
    # Ours nests the backbone; there it is part of the encoder.
    return derive_table(_shapes(E4eEncoder(spec), pixels), [*_LEAVES, (r"^backbone\.", ""), ("^", _ENCODER)])


def e4e_from_pytorch(spec: E4eSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our encoder's parameters from encoder4editing's "encoder.*" tensors; dtypes are kept.

    Raises:
        ValueError: names every missing, unknown and misshapen tensor.
    """
    return to_ours(e4e_table(spec), tensors, IGNORED)


def e4e_to_pytorch(spec: E4eSpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Encoder4editing's "encoder.*" tensors, without `num_batches_tracked`; the inverse of `e4e_from_pytorch`."""
    return to_foreign(e4e_table(spec), params)


def load_e4e_checkpoint(path: Path | str, spec: E4eSpec) -> tuple[dict[str, Any], Float[np.ndarray, "l d"]]:
    """The encoder's parameters and the average code (one row per W+ layer) of an encoder4editing checkpoint, in float32.

    The file is the PyTorch checkpoint (a dictionary with "state_dict" and "latent_avg") or its tensors as safetensors, with or
    without the leading "state_dict.". The generator, discriminator and optimizer beside the encoder are left alone.

    A pSp file can't be told apart by its tensors: they have the same names, but every style stands for itself there
    instead of being an offset from the first one. It loads, and gives wrong codes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it isn't an e4e checkpoint, has no average code, or doesn't fit the spec.

    Source: encoder4editing training/coach.py and models/psp.py (arXiv 2102.02766).
    """
    tensors = read_tensors(path, np.float32)
    tensors = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith(_ENCODER)}
    if not encoder or "latent_avg" not in tensors:
        got = f"no name that starts with {_ENCODER!r}" if not encoder else "no latent_avg"
        raise ValueError(
            f"expected an e4e checkpoint with an encoder and latent_avg, got {got} in {path}; check the path"
        )
    with naming(path):
        average = latent_average(tensors["latent_avg"], spec.num_layers, spec.wplus_dim)
        return e4e_from_pytorch(spec, encoder), average


def arcface_table(spec: ArcFaceSpec) -> list[Entry]:
    """The table between our ArcFace and the `Backbone` of InsightFace_Pytorch (TreB1eN), as in model_ir_se50.pth."""
    pixels = jnp.zeros((1, spec.input_size, spec.input_size, 3))
    return derive_table(_shapes(ArcFace(spec), pixels), [*_LEAVES, (r"^backbone\.", "")])


def arcface_from_pytorch(spec: ArcFaceSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our recogniser's parameters from InsightFace_Pytorch's tensors; dtypes are kept.

    Raises:
        ValueError: names every missing, unknown and misshapen tensor.
    """
    return to_ours(arcface_table(spec), tensors, IGNORED)


def arcface_to_pytorch(spec: ArcFaceSpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """InsightFace_Pytorch's tensors, without `num_batches_tracked`; the inverse of `arcface_from_pytorch`."""
    return to_foreign(arcface_table(spec), params)


def load_arcface_checkpoint(path: Path | str, spec: ArcFaceSpec) -> dict[str, Any]:
    """The recogniser's parameters, in float32, of a file that is a bare state dict, such as model_ir_se50.pth.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names every missing, unknown and misshapen tensor.
    """
    tensors = read_tensors(path, np.float32)
    with naming(path):
        return arcface_from_pytorch(spec, tensors)


def _shapes(model: nn.Module, pixels: jax.Array) -> dict[str, Any]:
    return nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))["params"]
