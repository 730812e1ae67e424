"""Pictures and masks as bytes, in whatever form they come: read if its meaning is certain, else refused."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

_NEARLY = 0.94  # of full white: compression and soft edges don't leave all of it
_SOFT_SHARE = 0.25  # of what is marked
_MAX_CLASSES = 32
_MIN_CONTRAST = 8  # levels of 256


Picture = Shaped[np.ndarray, "..."] | Image.Image | Path


def read_pixels(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of a photograph, turned as its EXIF says.

    picture: a file or PIL picture of any mode, or an array, grey or with 1 to 4 channels as files have them. Levels are 0 to
        255, 0 to 65535 or, as fractions, 0 to 1. What is transparent lies on white.

    Raises:
        ValueError: the file can't be read, levels are of another scale, or there is hardly more than one colour.
    """
    image = _image(picture)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_bytes(np.array(image)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = np.array(image.convert("RGB"))
    if np.ptp(pixels) < _MIN_CONTRAST:
        raise ValueError(
            f"expected a photograph, got levels from {pixels.min()} to {pixels.max()} of 255 only; replace the picture"
        )
    return pixels


def read_mask(mask: Picture, *, may_be_all: bool = False) -> UInt8[np.ndarray, "h w"]:
    """Face mask, 255 on the head and 0 elsewhere, turned as its EXIF says.

    mask: a file, PIL picture or array, grey levels of 0 to 255, 0 to 65535 or, as fractions, 0 to 1; or of two values, 0 and
        another one; or opaque on the head and transparent elsewhere.
    may_be_all: a picture that is white everywhere is a mask of everything, which no head is.

    Raises:
        ValueError: the file can't be read, nothing or everything is marked, or it can mean several things: labels of more than
            one class, colours, grey levels beside transparency.
    """
    levels = _single_channel(mask if isinstance(mask, np.ndarray) and mask.ndim == 2 else _image(mask))
    if not levels.size:
        raise ValueError(f"expected a face mask, got an array of shape {levels.shape}; mark the head")
    low, high = float(levels.min()), float(levels.max())
    if high == 0:
        wanted = ("mask with something white", "what is meant") if may_be_all else ("face mask with a face", "the head")
        raise ValueError(f"expected a {wanted[0]}, got zeros only; mark {wanted[1]}")
    if may_be_all and low == high and high in (1, 255, 65535):
        return np.full(levels.shape, 255, np.uint8)
    if ((levels == 0) | (levels == high)).all() and low == 0:
        return np.where(levels == high, 255, 0).astype(np.uint8)
    fractions = levels.dtype.kind == "f" and high <= 1
    white = 1.0 if fractions else next((top for top in (255.0, 65535.0) if _NEARLY * top <= high <= top), None)
    if white is None or not low >= 0 or _are_labels(levels / white):  # NaN isn't
        raise ValueError(
            f"expected a face mask of black and white (0 and 255), got levels from {low:g} to {high:g}, as of labels; "
            "mark the head alone"
        )
    if low > (1 - _NEARLY) * white:
        raise ValueError(
            f"expected a face mask that is black outside the head, got at least {low:g} of {white:g} everywhere; redo it"
        )
    return np.rint(levels * (255.0 / white)).astype(np.uint8)


def _are_labels(shares: np.ndarray) -> bool:
    """Classes drawn in greys: a few levels between black and white that hold much of what is marked, unlike a soft edge."""
    marked = shares > 1 - _NEARLY
    between = shares[marked & (shares < _NEARLY)]
    return bool(between.size > _SOFT_SHARE * marked.sum()) and len(np.unique(between)) <= _MAX_CLASSES


def _image(picture: np.ndarray | Image.Image | Path) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.shape[2:] not in [(), (1,), (2,), (3,), (4,)] or picture.ndim < 2 or not picture.size:
            raise ValueError(f"expected an array (height, width, channels), got shape {picture.shape}; turn it round")
        return Image.fromarray(_bytes(picture[..., 0] if picture.shape[2:] == (1,) else picture))
    try:
        if isinstance(picture, Image.Image):  # of a file with several pictures, the one that was chosen
            return ImageOps.exif_transpose(picture)
        with Image.open(picture) as image:
            # An MPO file is the JPEG of a phone: its first picture is the photograph.
            num_pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            read = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged file makes Pillow's decoders raise errors of any type
        raise ValueError(
            f"expected a picture at {picture}, got a file that can't be read ({error}); replace it"
        ) from error
    if num_pictures > 1:
        raise ValueError(
            f"expected one picture at {picture}, got {num_pictures} pages or frames; save the right one alone"
        )
    return read


def _bytes(levels: np.ndarray) -> np.ndarray:
    """Levels as uint8 of the same shape; 8 bits may be stored in more, but 10 or 12 bits can't be told from darkness."""
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype == bool:
        return levels * np.uint8(255)
    if levels.dtype.kind not in "iuf":
        raise ValueError(f"expected levels of a picture as numbers, got {levels.dtype}; pass a picture")
    low, high = levels.min(), levels.max()
    fractions = levels.dtype.kind == "f"
    if low >= 0 and fractions and high <= 1:
        scale = 255.0
    elif low >= 0 and high <= 255:
        scale = 1.0
    elif low >= 0 and not fractions and 4096 <= high <= 65535:
        scale = 1 / 257
    else:
        raise ValueError(
            f"expected levels of 8 bits (0 to 255) or 16 bits (0 to 65535), got {low:g} to {high:g}; save it with 8 bits"
        )
    return np.rint(levels * scale).astype(np.uint8)


def _single_channel(mask: Image.Image | np.ndarray) -> np.ndarray:
    """The channel that is the mask, with its own levels."""
    if isinstance(mask, np.ndarray) or (mask.mode in ("1", "L") or mask.mode.startswith(("I", "F"))):
        channel = np.array(mask)
        return _bytes(channel) if channel.dtype == bool else channel
    rgba = np.array(mask.convert("RGBA"), np.float32)
    colours, grey, alpha = rgba[..., :3], rgba[..., 1], rgba[..., 3]
    if np.ptp(alpha) and not np.ptp(colours, axis=(0, 1)).any():
        return alpha
    if np.ptp(colours, axis=2).max() > _MIN_CONTRAST:
        if mask.mode == "P":
            return np.array(mask)  # coloured labels: their numbers
        raise ValueError("expected a face mask of black and white, got colours; mark the head white, all else black")
    if np.abs(grey * alpha / 255 - grey).max() > _MIN_CONTRAST:
        raise ValueError("expected a face mask of black and white, got it transparent besides; save it without")
    return grey
