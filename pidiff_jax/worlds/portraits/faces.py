"""Photographs of the embedded world to W+ codes, as a user would bring them: a face is found, aligned and encoded."""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.worlds.portraits import networks, painter
from pidiff_jax.worlds.portraits.judges import load_judges, load_landmarks
from pidiff_jax.worlds.portraits.sources import load_wplus_encoder
from pidiff_jax.worlds.portraits.weight_files import load_weights

_MIN_FACE_SHARE = 0.03  # of the picture, of a face that counts
_LEAST_SURENESS = 0.6  # of each landmark; of rendered faces it is .99 and more
_MARGIN = 0.03  # of the width, around a head
_PLAIN = 0.02  # spread of the border of an aligned face, which is plain grey


class PortraitFaces:
    """Finds the face of a drawn portrait by the shipped segmenter and landmarks; see `worlds.world.Faces`."""

    @cached_property
    def _encode(self):
        encode = load_wplus_encoder()
        return jax.jit(lambda pixels: encode(signed_pixels(pixels)))

    @cached_property
    def _segment(self):
        return load_judges().face_mask

    @cached_property
    def _find_landmarks(self):
        return load_landmarks()

    def encode(
        self, pixels: UInt8[np.ndarray, "h w 3"], landmarks: Float[np.ndarray, "n 2"] | None = None
    ) -> Float[np.ndarray, "l d"]:
        """See `Faces.encode`. A face on plain grey counts as aligned; landmarks are found here, given ones aren't read."""
        small = _resized(pixels)
        aligned = small if _is_aligned(small) else self._aligned(small)
        return np.asarray(self._encode(aligned[None])[0], np.float32)

    def mask(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """See `Faces.mask`."""
        found = self._only_face(_resized(pixels)).astype(np.float32)
        scales = [new / old for new, old in zip(pixels.shape[:2], found.shape, strict=True)]
        mask = ndimage.zoom(found, scales, order=1, mode="nearest", grid_mode=True).clip(0.0, 1.0)
        # A little wider: the outline is known to a pixel or two, and what stays of a head that is redrawn catches the eye.
        return ndimage.grey_dilation(mask, 2 * round(_MARGIN * pixels.shape[1]) + 1)

    def _only_face(self, small: UInt8[np.ndarray, "s s 3"]) -> Float[np.ndarray, "_s _s"]:
        shares = np.asarray(self._segment(small[None].astype(np.float32) / 255.0))[0]
        regions, count = ndimage.label(shares > 0.5)
        sizes = ndimage.sum_labels(np.ones_like(shares), regions, range(1, count + 1))
        faces = [index + 1 for index, size in enumerate(sizes) if size >= _MIN_FACE_SHARE * shares.size]
        if not faces:
            raise ValueError("expected a picture with a face, found none; choose another")
        if len(faces) > 1:
            raise ValueError(f"expected a picture of one person, found {len(faces)} faces; cut one out")
        return np.where(regions == faces[0], 1.0, 0.0)

    def _aligned(self, small: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """The face as aligned photographs have it: upright, larger, in the middle and on grey."""
        mask = self._only_face(small)
        size = len(small)
        points, sureness = (np.asarray(x)[0] for x in self._find_landmarks(small[None].astype(np.float32) / 255.0))
        if sureness.min() < _LEAST_SURENESS:  # the segmenter sees heads in shades that are none
            raise ValueError("expected a picture with a face, found none; choose another")
        left, right = points[0], points[1]
        across = right - left
        roll = float(np.arctan2(across[1], across[0]))
        turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        # Where a head's middle is from the middle of its eyes, in the tilted head.
        wild, close = painter.WILD_SCALE, painter.ALIGNED_SCALE
        centre = (left + right) / 2 - turn @ np.array([0.0, painter.EYE_Y * wild])
        # (x, y) of the aligned picture to (x, y) of this one; arrays are indexed (y, x), at the middles of pixels.
        matrix = turn * (wild / close)
        offset = centre - matrix @ np.full(2, size / 2)
        flipped, shift = matrix[::-1, ::-1], offset[::-1]
        shift = shift + flipped @ np.full(2, 0.5) - 0.5
        grey = 255.0 * painter.GREY
        soft = ndimage.zoom(mask, size / len(mask), order=1, mode="nearest", grid_mode=True)
        warp = lambda x, outside: ndimage.affine_transform(x, flipped, shift, order=1, cval=outside)  # noqa: E731
        channels = [warp(small[..., i].astype(np.float32), grey) for i in range(3)]
        inside = warp(soft, 0.0)[..., None]
        return np.rint(inside * np.stack(channels, -1) + (1 - inside) * grey).astype(np.uint8)


def render_codes(wplus: Float[np.ndarray, "b l d"]) -> Float[np.ndarray, "b h w 3"]:
    """Pictures in [0, 1] of W+ codes, by the shipped synthesis network."""
    weights = load_weights("wplus")["synthesis"]
    pixels = jax.jit(Synthesis(networks.STYLEGAN2).apply)({"params": weights}, jnp.asarray(wplus, jnp.float32))
    return np.asarray(jnp.clip(pixels * 0.5 + 0.5, 0.0, 1.0))


def _resized(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    height, width = pixels.shape[:2]
    if height != width:
        raise ValueError(
            f"expected a square picture, as all of the embedded world are, got {width} x {height} pixels; cut one out"
        )
    size = (painter.RESOLUTION_PX,) * 2
    return (
        pixels if pixels.shape[:2] == size else np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    )


def _is_aligned(small: UInt8[np.ndarray, "s s 3"]) -> bool:
    corners = small[:6, [*range(6), *range(-6, 0)]].astype(np.float32) / 255.0
    return bool(np.abs(corners - painter.GREY).max() < _PLAIN * 2.5)
