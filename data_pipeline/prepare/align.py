"""Alignment of faces as in the FFHQ data set, which e4e and StyleGAN2 were trained on."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

# Indices of dlib's 68 points; left and right as seen in the picture.
_LEFT_EYE, _RIGHT_EYE, _MOUTH_CORNERS = slice(36, 42), slice(42, 48), [48, 54]
_MIN_FACE_PX = 2.0  # from the eyes to the mouth
_PROFILE = 0.25  # of that distance: in a profile, by so much one eye may seem to be on the other's side


def check_landmarks(landmarks: Float[np.ndarray, "n 2"]) -> None:
    """Checks that there are 5 or 68 points, all of them somewhere.

    Raises:
        ValueError: another number of points, or some that are NaN or in no picture.
    """
    if len(landmarks) not in (5, 68):
        raise ValueError(
            f"expected 5 or 68 landmarks, got {len(landmarks)}; give dlib's 68 points or eyes, nose and mouth"
        )
    if wrong := np.flatnonzero(~(np.abs(landmarks) < 1e6).all(1)).tolist():  # NaN isn't less
        raise ValueError(
            f"expected finite landmarks, got NaN or more than a million pixels in point {wrong[0] + 1}; find them again"
        )


def eyes_and_mouth(landmarks: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "4 2"]:
    """Left eye, right eye, left and right mouth corner (x, y), left and right as seen in the picture.

    landmarks: dlib's 68 points, or 5 points: left eye, right eye, nose tip, left and right mouth corner. In an upright face
        they may be the person's own left and right.

    Raises:
        ValueError: see `check_landmarks`; or eyes and mouth coincide, or lie as in no face.
    """
    check_landmarks(landmarks)
    points = np.asarray(landmarks, np.float64)
    if len(points) == 5:
        return _as_seen(points[[0, 1, 3, 4]])
    return _as_seen(np.stack([points[_LEFT_EYE].mean(0), points[_RIGHT_EYE].mean(0), *points[_MOUTH_CORNERS]]))


def _as_seen(points: np.ndarray) -> np.ndarray:
    """Eyes and mouth with left and right as seen: no turn of a face, even upside down, exchanges them, but a mirror does."""
    down = points[2:].mean(0) - points[:2].mean(0)
    if (distance := np.hypot(*down)) < _MIN_FACE_PX:
        raise ValueError(
            f"expected eyes and mouth at different places, got landmarks that coincide within {distance:.2g} pixels; give "
            "pixels, not shares of the picture's size"
        )
    eyes, mouth = np.diff(points.reshape(2, 2, 2), axis=1)[:, 0] @ -_quarter_turn(down) / distance**2
    if min(eyes, mouth) > -_PROFILE:
        return points
    if max(eyes, mouth) < -_PROFILE and down[1] > abs(down[0]):
        return points[[1, 0, 3, 2]]
    raise ValueError(
        "expected left and right of eyes and mouth as seen in the picture, got them exchanged, or x and y; correct the "
        "landmarks' order"
    )


def ffhq_quad(landmarks: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "4 2"]:
    """Corners (x, y) of the aligned crop in the photograph: top left, bottom left, bottom right, top right of the face.

    A square, turned with the face: its half side is twice the distance of the eyes or 1.8 times that from eyes to
    mouth, whichever is more; its centre lies a tenth of the way from the eyes to the mouth.

    Source: FFHQ's recreate_aligned_images as used by encoder4editing, utils/alignment.py.
    """
    left_eye, right_eye, left_mouth, right_mouth = eyes_and_mouth(landmarks)
    eyes = (left_eye + right_eye) / 2
    eye_to_eye, eye_to_mouth = right_eye - left_eye, (left_mouth + right_mouth) / 2 - eyes
    direction = eye_to_eye - _quarter_turn(eye_to_mouth)
    half_width = direction / np.hypot(*direction) * max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    half_height = _quarter_turn(half_width)
    centre = eyes + 0.1 * eye_to_mouth
    corners = [-half_width - half_height, -half_width + half_height, half_width + half_height, half_width - half_height]
    return centre + np.stack(corners)


def align_face(
    pixels: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "n 2"],
    output_size_px: int = 256,
    pad: bool = True,
) -> UInt8[np.ndarray, "s s 3"]:
    """Cuts the aligned face out of a photograph.

    pad: where the crop reaches beyond the photograph, continue it by a blurred reflection (e4e); otherwise black
        (w-plus-adapter).
    """
    quad = ffhq_quad(landmarks)
    side = np.hypot(*(quad[3] - quad[0]))
    image = Image.fromarray(pixels)
    if (shrink := int(side / output_size_px / 2)) > 1:  # before the bilinear cut, which would alias
        size = (round(image.width / shrink), round(image.height / shrink))
        image, quad, side = image.resize(size, Image.Resampling.LANCZOS), quad / shrink, side / shrink
    border = max(round(0.1 * side), 3)
    low, high = np.floor(quad.min(0)).astype(int) - border, np.ceil(quad.max(0)).astype(int) + border
    inside_low, inside_high = np.maximum(low, 0), np.minimum(high, image.size)
    if (inside_low >= inside_high).any():
        raise ValueError(f"expected landmarks inside the picture, got a face from {low} to {high}; correct them")
    image, quad = image.crop((*inside_low, *inside_high)), quad - inside_low
    missing = np.concatenate([inside_low - low, high - inside_high])  # left, top, right, bottom
    if pad and missing.max() > border - 4:
        margins = np.maximum(missing, round(0.3 * side))
        image, quad = Image.fromarray(_pad_blurred(np.asarray(image), margins, 0.02 * side)), quad + margins[:2]
    corners = tuple((quad + 0.5).ravel())
    size = (output_size_px, output_size_px)
    return np.array(image.transform(size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR))


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    return np.array([-vector[1], vector[0]])


def _pad_blurred(pixels: np.ndarray, margins: np.ndarray, blur_px: float) -> np.ndarray:
    """Reflects the picture into margins (left, top, right, bottom), blurred and, further out, fading to one colour."""
    left, top, right, bottom = (int(margin) for margin in margins)
    image = np.pad(pixels.astype(np.float32), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width, _ = image.shape
    y, x = np.ogrid[:height, :width]
    depth_x = np.minimum(x / max(left, 1e-6), (width - 1 - x) / max(right, 1e-6))
    depth_y = np.minimum(y / max(top, 1e-6), (height - 1 - y) / max(bottom, 1e-6))
    outside = 1.0 - np.minimum(depth_x, depth_y)[..., None]  # 1 at the outer edge, 0 where the photograph begins
    blurred = ndimage.gaussian_filter(image, (blur_px, blur_px, 0))
    image += (blurred - image) * np.clip(3.0 * outside + 1.0, 0.0, 1.0)
    image += (np.median(image, axis=(0, 1)) - image) * np.clip(outside, 0.0, 1.0)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
