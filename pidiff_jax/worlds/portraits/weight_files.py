"""The shipped weights of the embedded world, and files of its form."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pidiff_jax.checkpoint.initialise import initialise_from
from pidiff_jax.convert.files import naming, read_tensors, write_safetensors
from pidiff_jax.paths import flatten, unflatten

WEIGHTS = Path(__file__).parent / "weights"


def save_weights(path: Path, params: Mapping[str, Any], card: Mapping[str, Any], *, replace: bool = False) -> None:
    """Writes parameters as float16 safetensors with a model card (JSON) in the metadata; overwrites with `replace` only."""
    flat = flatten(nn.meta.unbox(params))
    tensors = {name: np.asarray(value, np.float16) for name, value in flat.items()}
    write_safetensors(path, tensors, {"model_card": json.dumps(card, sort_keys=True)}, replace=replace)


def load_weights(
    name: str, folder: Path | str | None = None, shapes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Reads `<folder>/<name>.safetensors` (default: the shipped ones) as float32 parameters.

    shapes: the parameters that it must hold, as `jax.ShapeDtypeStruct`s; None: whatever it holds.

    Raises:
        FileNotFoundError: the file is not there; names the experiment that makes it.
        ValueError: it holds other parameters than `shapes`.
    """
    path = check_weights(name, folder)
    params = unflatten({key: jnp.asarray(x, jnp.float32) for key, x in read_tensors(path).items()})
    if shapes is None:
        return params
    with naming(path):
        return initialise_from(nn.meta.unbox(shapes), params)


def check_weights(name: str, folder: Path | str | None = None) -> Path:
    """The file that `load_weights` would read.

    Raises:
        FileNotFoundError: see `load_weights`.
    """
    path = Path(folder or WEIGHTS) / f"{name}.safetensors"
    if path.is_file():
        return path
    made = "make them with the experiments portraits_base.py, portraits_wplus.py and portraits_judges.py"
    if folder:
        raise FileNotFoundError(
            f"expected embedded weights at {path}, found none; correct config.base.path={str(folder)!r} (--base_path, where "
            f"there is one), or leave it out, or {made} (for a Stable Diffusion folder use experiments/ffhq.py)"
        )
    raise FileNotFoundError(f"expected embedded weights at {path}, found none; reinstall the package, or {made}")
