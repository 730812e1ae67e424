"""Where the identity attends, for people: smooth, over the picture in grey, in one scale for all maps that stand together."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

_COLOUR_MAP = "inferno"  # equal steps look equal, in grey and to colour-blind people too
_DARKEST, _OPACITY = 0.25, 0.85  # where the colours begin on that map; how much of the picture the strongest one hides
_SMOOTHING = 0.04  # standard deviation, as a share of the width: maps of coarse layers are made of large squares
_LEAST_TOP = 2.0  # attention spread evenly must not look like a peak


def heat_maps(
    pixels: Float[np.ndarray, "n h w 3"], attention: Float[np.ndarray, "n _h _w"]
) -> tuple[Float[np.ndarray, "n h w 3"], float]:
    """Lays each map over its picture in grey, the more opaque the stronger, and says what the strongest colour means.

    Args:
        pixels: in [0, 1].
        attention: in any unit and resolution.

    Returns:
        The pictures in [0, 1], and the strength of the strongest colour, as a multiple of attention that is spread evenly.
    """
    strength = np.stack([_enlarged(each, pixels.shape[1:3]) for each in _times_even(attention)])
    top = max(float(strength.max()), _LEAST_TOP)
    return _overlaid(pixels, strength / top), top


def colour_bar(height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """The colours of `heat_maps` on medium grey, from no attention (left) to the strongest."""
    part = np.broadcast_to(np.linspace(0.0, 1.0, width), (height, width))
    return _overlaid(np.full((height, width, 3), 0.5, np.float32), part)


def _times_even(attention: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Multiples of each map's mean; a map of zeros stays one."""
    maps = np.asarray(attention, np.float32)
    return maps / np.maximum(maps.mean((1, 2), keepdims=True), 1e-12)


def _enlarged(strength: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "_h _w"]:
    """The map at a picture's (height, width), smoothed without overshooting: for looking at, not for scores."""
    scales = [new / old for new, old in zip(size, strength.shape, strict=True)]
    large = ndimage.zoom(strength, scales, order=1, mode="nearest", grid_mode=True)
    return ndimage.gaussian_filter(large, _SMOOTHING * size[1], mode="nearest").clip(0.0)


def _overlaid(
    pixels: Float[np.ndarray, "*n h w 3"], part: Float[np.ndarray, "*n h w"]
) -> Float[np.ndarray, "*n h w 3"]:
    import matplotlib  # here, because a run should not wait for it at its start

    colours = matplotlib.colormaps[_COLOUR_MAP](_DARKEST + (1 - _DARKEST) * part)[..., :3]
    opacity = _OPACITY * part[..., None] ** 0.7
    return ((1 - opacity) * pixels.mean(-1, keepdims=True) + opacity * colours).astype(np.float32)
