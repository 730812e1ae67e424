"""What all runs have in common that make the embedded world's weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.ir_se import calibrate
from pidiff_jax.train.build import trained_parts
from pidiff_jax.train.experiment import Experiment, Sources, Weights
from pidiff_jax.train.step import LossFn
from pidiff_jax.worlds.portraits.renderer import RESOLUTION_PX, SCENE_ATTRIBUTES, View
from pidiff_jax.worlds.portraits.sources import pictures
from pidiff_jax.worlds.portraits.weight_files import save_weights

ONE_PICTURE = (1, RESOLUTION_PX, RESOLUTION_PX, 3)
BYTE_PICTURE = jax.ShapeDtypeStruct((RESOLUTION_PX, RESOLUTION_PX, 3), np.uint8)
PICTURE_RECORD = {
    "pixels": BYTE_PICTURE,
    "scene": jax.ShapeDtypeStruct((len(SCENE_ATTRIBUTES),), np.int32),
    "person_id": jax.ShapeDtypeStruct((), np.int32),
}


def weights_experiment(
    config: Any,
    *,
    file: str,
    init: Callable[[], dict[str, Any]],
    losses: LossFn,
    sources: Sources,
    record: Mapping[str, jax.ShapeDtypeStruct],
    finish_init: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params,
    finish_weights: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params,
) -> Experiment:
    """A run whose result is `<workdir>/weights/<file>.safetensors`.

    Args:
        init: makes fresh parameters, boxed, whose top-level trees are those of the file.
        finish_init: what takes pictures to be made: the same tree with better values.
        finish_weights: what is done to trained parameters before they are written.
    """

    def write(folder: Path, params: Mapping[str, Any], card: Mapping[str, Any]) -> None:
        path = folder / "weights" / f"{file}.safetensors"
        path.parent.mkdir(exist_ok=True)
        params = finish_weights(nn.meta.unbox(params))
        save_weights(path, params, card, replace=True)  # this run's own, of fewer steps or of an end that was cut off

    return Experiment(
        shapes=jax.eval_shape(init),
        load=lambda: Weights(nn.meta.unbox(finish_init(init()))),
        losses=losses,
        **trained_parts(config),
        sources=sources,
        record=record,
        write_weights=write,
    )


def calibrated(network: nn.Module, params: dict[str, Any], split: str, view: View) -> dict[str, Any]:
    """The parameters with the statistics of the first pictures in every batch normalisation."""
    return calibrate(network, params, jnp.asarray(signed_pixels(pictures(split, 64, 1, view)["pixels"])))
