"""Coarse, middle and fine: which layers of W+ decide what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

LEVELS = ("coarse", "middle", "fine")
# The first layer of each: 4 to 8 px, 16 to 32 px, and above.
_STARTS = (0, 4, 8)

Span = tuple[int, int]


def level_spans(num_layers: int) -> dict[str, Span]:
    """Start and end of each level's layers: 0-3, 4-7, and the rest.

    Source: Karras et al. 2019 (arXiv 1812.04948), figure 3.
    """
    starts = [min(start, num_layers) for start in _STARTS]
    return dict(zip(LEVELS, zip(starts, [*starts[1:], num_layers], strict=True), strict=True))


def layers_of(levels: str | int | Sequence[Any], num_layers: int) -> list[int]:
    """The layers that are meant: "coarse", "all", "2-5", a number, or several of these in a list.

    Raises:
        ValueError: an unknown name, or layers that the code doesn't have.
    """
    if isinstance(levels, str) and "," in levels:
        levels = [each.strip() for each in levels.split(",")]
    if not isinstance(levels, str | int):
        return sorted({layer for each in levels for layer in layers_of(each, num_layers)})
    spans = {**level_spans(num_layers), "all": (0, num_layers)}
    if levels in spans:
        return list(range(*spans[levels]))
    first, dash, last = str(levels).partition("-")
    try:
        start, end = int(first), int(last if dash else first)
    except ValueError:
        raise ValueError(
            f"expected levels of {', '.join(LEVELS)}, all, or layers such as 3 or 2-5, got {levels!r}; correct the name"
        ) from None
    if not 0 <= start <= end < num_layers:
        raise ValueError(f"expected layers of 0 to {num_layers - 1}, got {levels}; correct the range")
    return list(range(start, end + 1))


def mix(
    a: Float[np.ndarray, "l d"], b: Float[np.ndarray, "_l _d"], levels: str | int | Sequence[Any], strength: float = 1.0
) -> Float[np.ndarray, "l d"]:
    """The code `a`, with `b` in the given layers: of all levels it is `b`.

    strength: how far these layers go from `a` (0) to `b` (1).

    Example:
        >>> a, b = np.zeros((18, 512), np.float32), np.ones((18, 512), np.float32)
        >>> mix(a, b, "coarse").mean(1)[:5]
        array([1., 1., 1., 1., 0.], dtype=float32)

    Raises:
        ValueError: codes of different shapes, or levels that there aren't.
    """
    _check_same(a, b)
    mixed, layers = np.array(a, np.float32), layers_of(levels, len(a))
    mixed[layers] = b[layers] if strength == 1.0 else a[layers] + strength * (b[layers] - a[layers])
    return mixed


def interpolate(
    a: Float[np.ndarray, "l d"], b: Float[np.ndarray, "_l _d"], num_steps: int
) -> Float[np.ndarray, "n l d"]:
    """Codes evenly on the line from `a` to `b`, both included."""
    _check_same(a, b)
    return np.stack([mix(a, b, "all", float(share)) for share in np.linspace(0.0, 1.0, num_steps)])


def per_layer(values: float | Sequence[float] | Mapping[str, float], num_layers: int) -> Float[np.ndarray, "l"]:
    """A number for each layer, of one for all, one for each, or one for each level ({"coarse": 1, "fine": 0.5}; others 1).

    Raises:
        ValueError: another number of values, or a level that there isn't.
    """
    if isinstance(values, Mapping):
        numbers = np.ones(num_layers, np.float32)
        for levels, value in values.items():
            with np.errstate(over="ignore"):
                numbers[layers_of(levels, num_layers)] = value
        return numbers
    with np.errstate(over="ignore"):  # what is infinite then is refused by who uses it
        array = np.asarray(values, np.float32)
    if array.shape not in [(), (num_layers,)]:
        raise ValueError(
            f"expected one number, or one for each of {num_layers} layers, got {array.shape}; correct them"
        )
    return np.broadcast_to(array, (num_layers,))


def _check_same(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"expected codes of one shape, got {a.shape} and {b.shape}; take them from one encoder")
