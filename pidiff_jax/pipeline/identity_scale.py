"""How strong an identity is, at which time, in which level and where: from a user's words to arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipeline.prepare.pictures import read_mask
from pidiff_jax.editing.levels import per_layer
from pidiff_jax.locations import local_path
from pidiff_jax.models.identity_mapper import MapperSpec
from pidiff_jax.ranges import about, check_number
from pidiff_jax.sampling.generate import steps_between

Scale = float | Sequence[float] | Mapping[str, float]


def identity_schedule(
    scale: Scale,
    num_steps: int,
    spec: MapperSpec,
    *,
    start: float = 0.0,
    end: float = 1.0,
    over_time: Sequence[float] | None = None,
) -> Float[np.ndarray, "n t"]:
    """The strength of each token in each step.

    Args:
        scale: one number, one for each W+ layer, or one for each level, as `editing.levels.per_layer` reads them. A token
            has the mean of its layers.
        start, end: the share of the steps that come before the identity is there, and at which it goes.
        over_time: factors, evenly over all steps, linear in between: (0, 1) grows.

    Raises:
        ValueError: numbers that aren't finite, or a start or end that is no share.
    """
    layers = per_layer(scale, spec.num_layers)
    for value in layers:
        check_number("an identity_scale", float(value))
    tokens = np.concatenate([np.full(spec.tokens_per_group, layers[a:b].mean()) for a, b in spec.groups])
    factor = steps_between(num_steps, start, end)
    if over_time is not None:
        factors = np.asarray(over_time, np.float32)
        if factors.ndim != 1 or not len(factors) or not np.isfinite(factors).all():
            raise ValueError(f"expected identity_over_time as a list of finite numbers, got {over_time!r}; correct it")
        factor *= np.interp(np.linspace(0, 1, num_steps), np.linspace(0, 1, len(factors)), factors).astype(np.float32)
    return (factor[:, None] * tokens).astype(np.float32)


def region_masks(
    regions: Sequence[Any], size: tuple[int, int], latent_size: tuple[int, int]
) -> Float[np.ndarray, "p h w"]:
    """Where each of p people is, at the latents' resolution, 1 inside.

    Args:
        regions: boxes (left, top, right, bottom) in shares of the picture, or masks (files, PIL pictures, arrays), one each.
        size: height and width of the picture, in pixels.

    Raises:
        ValueError: a box that is none, an empty mask, or one of another shape than the picture.
    """
    return np.stack([_cover(_region(region, size, f"region {i + 1}"), latent_size) for i, region in enumerate(regions)])


def picture_mask(mask: Any, size: tuple[int, int], name: str = "mask_image") -> Float[np.ndarray, "h w"]:
    """A mask at a picture's (height, width), 1 where it is white.

    mask: a file, PIL picture or array, see `read_mask`; one that is white everywhere is a mask of everything.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no mask, or one of other proportions.
    """
    if isinstance(mask, str | Path):
        mask = local_path(mask, name)
        if not mask.is_file():
            or_else = "give 'face'" if name == "mask_image" else "give a box left,top,right,bottom"
            raise FileNotFoundError(f"expected a picture as {name} at {mask}, found none; check the path, or {or_else}")
    with about(name):
        levels = read_mask(mask if isinstance(mask, Image.Image | Path) else np.asarray(mask), may_be_all=True)
    if levels.shape[0] * size[1] != levels.shape[1] * size[0]:
        raise ValueError(
            f"expected {name} with the proportions of the picture, {size[1]} x {size[0]}, got {levels.shape[1]} x "
            f"{levels.shape[0]}; cut or resize it"
        )
    return np.asarray(Image.fromarray(levels).resize(size[::-1], Image.Resampling.BOX), np.float32) / 255.0


def _region(region: Any, size: tuple[int, int], name: str) -> Float[np.ndarray, "h w"]:
    if not isinstance(region, Sequence) or isinstance(region, str) or np.ndim(region) != 1:
        return picture_mask(region, size, name)
    box = np.asarray(region, np.float32)
    if box.shape != (4,) or not ((0 <= box) & (box <= 1)).all() or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"expected {name} as a box (left, top, right, bottom) in shares of the picture, 0 to 1, got {tuple(region)}; "
            "correct it"
        )
    rows, columns = (np.arange(n) + 0.5 for n in size)
    inside = lambda places, low, high, n: (places >= low * n) & (places <= high * n)  # noqa: E731
    return np.outer(inside(rows, box[1], box[3], size[0]), inside(columns, box[0], box[2], size[1])).astype(np.float32)


def _cover(mask: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "_h _w"]:
    rows, columns = size
    return mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).mean((1, 3))
