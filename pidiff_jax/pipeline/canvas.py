"""A picture that drawing starts from, and the part of it that is drawn anew."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from pidiff_jax.arrays import byte_pixels
from pidiff_jax.pipeline.identity_scale import picture_mask
from pidiff_jax.pipeline.people import as_pixels
from pidiff_jax.pipeline.recipe import pixels_hash
from pidiff_jax.worlds import Faces


@dataclass(frozen=True)
class Canvas:
    """A picture that is changed: its pixels in [0, 1], scaled latents, and where it is drawn anew."""

    pixels: Float[np.ndarray, "h w 3"]
    latents: Float[np.ndarray, "_h _w c"]
    mask: Float[np.ndarray, "h w"] | None
    latent_mask: Float[np.ndarray, "_h _w 1"] | None
    source: dict[str, Any]

    @classmethod
    def of(
        cls,
        image: Any,
        mask: Any,
        size: tuple[int, int],
        encode: Callable[[Float[np.ndarray, "h w 3"]], Float[np.ndarray, "_h _w c"]],
        faces: Callable[[], Faces],
    ) -> "Canvas":
        """A user's picture and mask, at the (height, width) that is drawn.

        encode: pixels in [0, 1] to scaled latents. faces: finds the head, where the mask is "face".

        Raises:
            ValueError: a picture or mask that can't be read, or has other proportions.
        """
        original = as_pixels(image)
        if original.shape[0] * size[1] != original.shape[1] * size[0]:
            raise ValueError(
                f"expected image with the proportions of what is drawn, {size[1]} x {size[0]}, got {original.shape[1]} x "
                f"{original.shape[0]} pixels; cut it, or set height and width"
            )
        pixels = np.array(Image.fromarray(original).resize(size[::-1], Image.Resampling.LANCZOS), np.float32) / 255.0
        latents = encode(pixels)
        source = {"image": name_of(image), "image_sha256": pixels_hash(original)}
        if mask is None:
            return cls(pixels, latents, None, None, source)
        if isinstance(mask, str) and mask == "face":
            shares = np.asarray(faces().mask(byte_pixels(pixels)), np.float32)
        else:
            shares = picture_mask(mask, size)
        rows, columns = latents.shape[:2]
        blocks = shares.reshape(rows, size[0] // rows, columns, size[1] // columns)
        source |= {"mask_image": name_of(mask), "mask_sha256": pixels_hash(byte_pixels(shares))}
        return cls(pixels, latents, shares, (blocks.max((1, 3)) > 0).astype(np.float32)[..., None], source)

    def paste(self, drawn: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
        """What was drawn, inside of the mask; outside, the picture as it was."""
        if self.mask is None:
            return drawn
        share = self.mask[None, ..., None]
        return share * drawn + (1.0 - share) * self.pixels[None]


def name_of(picture: Any) -> str | None:
    """Of a file; None of a picture in memory."""
    return str(picture) if isinstance(picture, str | Path) else None
