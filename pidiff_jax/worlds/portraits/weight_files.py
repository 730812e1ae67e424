"""The shipped weights of the embedded world, and files of its form."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.paths import flatten, unflatten

WEIGHTS = Path(__file__).parent / "weights"


def save_weights(path: Path, params: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Writes parameters as float16 safetensors with a model card (JSON) in the metadata; never overwrites."""
    flat = flatten(nn.meta.unbox(params))
    tensors = {name: np.asarray(value, np.float16) for name, value in flat.items()}
    write_safetensors(path, tensors, {"model_card": json.dumps(card, sort_keys=True)})


def load_weights(name: str, folder: Path | str | None = None) -> dict[str, Any]:
    """Reads `<folder>/<name>.safetensors` (default: the shipped ones) as float32 parameters.

    Raises:
        FileNotFoundError: the file is not there; names the experiment that makes it.
    """
    tensors = read_tensors(check_weights(name, folder))
    return unflatten({path: jnp.asarray(tensor, jnp.float32) for path, tensor in tensors.items()})


def check_weights(name: str, folder: Path | str | None = None) -> Path:
    """The file that `load_weights` would read.

    Raises:
        FileNotFoundError: see `load_weights`.
    """
    path = Path(folder or WEIGHTS) / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected embedded weights at {path}, found none; make them with the experiments portraits_base.py, "
            "portraits_wplus.py and portraits_judges.py, or reinstall the package (for a Stable Diffusion folder use "
            "experiments/ffhq.py)"
        )
    return path
