"""Small things that everybody does to arrays: bytes to pixels, batches of one compiled shape, resizing by area."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8
from tqdm import tqdm


@overload
def signed_pixels(pixels: UInt8[Array, "*b"]) -> Float[Array, "*b"]: ...
@overload
def signed_pixels(pixels: UInt8[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]: ...
def signed_pixels(pixels: UInt8[Array, "*b"] | UInt8[np.ndarray, "*b"]) -> Float[Array, "*b"] | Float[np.ndarray, "*b"]:
    """Bytes to float32 in [-1, 1], what the networks read; JAX or numpy arrays, as they come."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def byte_pixels(pixels: Float[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b"]:
    """Pixels in [0, 1] to bytes; what lies outside is cut."""
    return np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)


def add_up(arrays: Iterable[Shaped[Array, "..."]]) -> Shaped[Array, "..."]:
    """The sum of one or more arrays, as Python's `sum` makes it: from 0 on, each added as soon as it is there."""
    others = iter(arrays)
    return sum(others, start=0 + next(others))


def fill_up(array: Shaped[np.ndarray, "n ..."], size: int) -> Shaped[np.ndarray, "{size} ..."]:
    """Repeats the last row until there are `size`: a short batch takes the shape that is compiled already."""
    return np.pad(array, ((0, size - len(array)),) + ((0, 0),) * (array.ndim - 1), mode="edge")


def in_batches(
    function: Callable[..., Any], *arrays: Shaped[np.ndarray, "n ..."], batch_size: int, doing: str | None = None
) -> Any:
    """Applies a function of rows batch by batch, all of one shape, and joins its results: arrays, or a tree of them.

    The last batch is filled up; what the function makes of the filling is dropped. Results are numpy arrays.

    doing: what a terminal is told, with a progress bar, if it takes longer than a few seconds; None: nothing.
    """
    outputs = []
    starts = range(0, len(arrays[0]), batch_size)
    quiet = True if doing is None else None  # None: where there is no terminal
    for start in tqdm(starts, doing, unit="batch", delay=3, leave=False, disable=quiet):
        batch = [np.asarray(array[start : start + batch_size]) for array in arrays]
        keep = len(batch[0])
        result = function(*(fill_up(rows, batch_size) for rows in batch))
        outputs.append(jax.tree.map(lambda x, keep=keep: np.asarray(x)[:keep], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def area_resize(maps: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b _h _w"]:
    """Resizes so that each new cell holds the mean over the area that it covers, for any pair of sizes."""
    rows, columns = (_coverage(old, new) for old, new in zip(maps.shape[1:], size, strict=True))
    return jnp.einsum("ph,bhw,qw->bpq", rows, maps, columns)


def _coverage(old: int, new: int) -> np.ndarray:
    """(new, old): the fraction of each new cell that each old cell fills; rows sum to 1."""
    edges_new, edges_old = np.arange(new + 1) * (old / new), np.arange(old + 1)
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    return (np.maximum(high - low, 0.0) * (new / old)).astype(np.float32)
