"""Photographs to W+ codes by e4e; whoever has no aligned face brings its landmarks."""

from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipeline.prepare.align import align_face
from pidiff_jax.arrays import signed_pixels
from pidiff_jax.convert.ir_se import load_e4e_checkpoint
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec, encode_wplus


class PhotographFaces:
    """encoder: checkpoint of encoder4editing, of codes with so many layers, so wide; see `worlds.world.Faces`.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, encoder: Path, num_layers: int, wplus_dim: int):
        if not encoder.is_file():
            raise FileNotFoundError(
                f"expected a checkpoint of encoder4editing at {encoder}, found none; download it and pass its path"
            )
        self._path, self._spec = encoder, E4eSpec(num_layers=num_layers, wplus_dim=wplus_dim)

    @cached_property
    def _encode(self):
        params, average = load_e4e_checkpoint(self._path, self._spec)
        encoder = E4eEncoder(self._spec)
        encode = jax.jit(lambda params, pixels: encode_wplus(encoder, params, jnp.asarray(average), pixels))
        return lambda pixels: encode(params, pixels)

    def encode(
        self, pixels: UInt8[np.ndarray, "h w 3"], landmarks: Float[np.ndarray, "n 2"] | None = None
    ) -> Float[np.ndarray, "l d"]:
        """See `Faces.encode`. Without landmarks, a square picture counts as aligned as in FFHQ; others are refused."""
        size = self._spec.input_size
        if landmarks is not None:
            face = align_face(pixels, np.asarray(landmarks, np.float32), size)
        elif pixels.shape[0] == pixels.shape[1]:
            face = np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))
        else:
            raise ValueError(
                f"expected landmarks, or a square picture aligned as in FFHQ, got {pixels.shape[1]} x {pixels.shape[0]} "
                "pixels; nothing here finds a face in a photograph yet: pass landmarks"
            )
        return np.asarray(self._encode(signed_pixels(face[None])))[0]

    def mask(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """See `Faces.mask`."""
        raise ValueError(
            "expected a mask of the face as a picture, got 'face'; nothing here finds one in photographs yet"
        )
