"""How one picture of the embedded world is painted: a face in a pose, before a background or on plain grey.

A picture is painted from back to front. Head coordinates: x to the right, y downwards, the head about 2 units high, its
centre at the origin; the features move sideways on it as the head turns.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.worlds.portraits.canvas import Canvas, Plane, Scalar, ellipse, ramp, rounded_box

RESOLUTION_PX = 64

View = Literal["aligned", "wild"]

# The colours of walls and shirts, in the order of `renderer.COLOURS`.
_PALETTE = (
    np.array(
        [
            (205, 35, 35),
            (245, 140, 25),
            (245, 220, 50),
            (40, 160, 60),
            (40, 85, 215),
            (130, 50, 170),
            (25, 25, 28),
            (240, 240, 240),
        ],
        np.float32,
    )
    / 255.0
)
_GREY = 0.55
# A parameter in [0, 1] goes along each of these.
_SKIN = np.array([(66, 41, 30), (122, 78, 54), (178, 122, 88), (222, 172, 136), (250, 218, 196)], np.float32) / 255.0
_HAIR = (
    np.array(
        [(22, 20, 24), (74, 44, 26), (128, 74, 36), (176, 74, 28), (206, 156, 74), (236, 208, 140), (208, 206, 208)],
        np.float32,
    )
    / 255.0
)
_EYES = np.array([(70, 40, 20), (120, 84, 36), (70, 130, 70), (60, 120, 190), (130, 160, 185)], np.float32) / 255.0
_LONG_HAIR = 0.3  # hair longer than this falls behind the head
_EYE_Y, _NOSE_Y, _MOUTH_Y = -0.08, 0.2, 0.52


class Face(NamedTuple):
    """The identity of a person: parameters in [0, 1], in the order that identity vectors have."""

    width: Scalar  # of the head, narrow to broad
    jaw: Scalar  # pointed to square
    tone: Scalar  # of the skin, dark to light
    warmth: Scalar  # of the skin, bluish to reddish
    hair_tone: Scalar  # black, browns, red, blonds, grey
    hair_length: Scalar  # below 0.08 bald, to 0.3 cropped, then down to below the chin
    hair_volume: Scalar  # how far the hair stands off the head
    fringe: Scalar  # how low the hair line is over the forehead
    parting: Scalar  # slant of the hair line; 0.5 is level
    eye_size: Scalar
    eye_gap: Scalar  # distance between the eyes
    eye_tone: Scalar  # browns, green, blues
    brow_weight: Scalar  # thickness of the eyebrows
    brow_tilt: Scalar  # 0.5 is level
    nose: Scalar  # its width
    mouth_width: Scalar
    lips: Scalar  # fullness and redness
    beard: Scalar  # none up to 0.45, then denser and higher
    glasses: Scalar  # none up to 0.68, then black frames, above 0.84 red ones
    freckles: Scalar  # none up to 0.4, then redder cheeks


class Pose(NamedTuple):
    """What is not identity: where the head is in the picture, its expression and the light on it."""

    centre: Float[Array, "2"]  # of the head, (x, y) in pixels
    scale: Scalar  # pixels per head unit
    roll: Scalar  # radians
    yaw: Scalar  # radians
    smile: Scalar  # -1 to 1
    mouth_open: Scalar  # 0 to 1
    brow_raise: Scalar  # -1 to 1
    gaze: Scalar  # -1 to 1, sideways
    light: Scalar  # how much brighter it gets towards the right, per head unit
    brightness: Scalar  # of the whole person; 1 is neutral


class _Head(NamedTuple):
    """Places and sizes that several painters share, in head coordinates."""

    x: Plane
    y: Plane
    feature_x: Plane  # x on the turned head: 0 is the middle of the face
    shift: Scalar  # x of the middle of the face
    half_width: Scalar
    half_width_here: Plane  # ... at each height: the jaw narrows or squares the lower half
    outline: Plane  # distance to the head
    hair_volume: Scalar  # how far hair stands off the head
    hair_bottom: Scalar  # y at which long hair ends
    eye_x: Scalar  # of the eyes, left and right of the middle of the face
    half_mouth: Scalar


class _Paints(NamedTuple):
    """The colours of a person without light, and the light, a factor for each pixel of the head."""

    skin: Float[Array, "3"]
    hair: Float[Array, "3"]
    light: Float[Array, "h w 1"]


def paint_portrait(
    face: Face, pose: Pose, scene: Int[Array, "3"], background_key: Key[Array, ""], view: View
) -> tuple[Float[Array, "h w 3"], Plane, Float[Array, "5 2"]]:
    """Pixels in [0, 1], head mask in [0, 1] and landmarks (x, y) in pixels of one picture, as `renderer.Picture` has them.

    scene: indices into `renderer.SCENE_ATTRIBUTES`; the aligned view shows none of it. background_key: where stripes
    and dots of the wall begin and how large they are.
    """
    grid = jnp.arange(RESOLUTION_PX, dtype=jnp.float32) + 0.5
    px, py = jnp.meshgrid(grid, grid)
    cos, sin = jnp.cos(pose.roll), jnp.sin(pose.roll)
    # Upright: the neck and the body do not tilt with the head.
    upright_x, upright_y = (px - pose.centre[0]) / pose.scale, (py - pose.centre[1]) / pose.scale
    x, y = cos * upright_x + sin * upright_y, -sin * upright_x + cos * upright_y

    if view == "wild":
        backdrop = _background(background_key, px, py, scene)
    else:
        backdrop = jnp.full((RESOLUTION_PX, RESOLUTION_PX, 3), _GREY)
    canvas = Canvas(backdrop, 1.0 / pose.scale)
    head, paints = _head(face, pose, x, y), _paints(face, pose, x)

    head_mask = _paint_hair_behind(canvas, face, head, paints)
    if view == "wild":
        neck, body = _paint_body(canvas, pose, paints, scene, upright_x, upright_y)
        head_mask = head_mask * (1.0 - neck) * (1.0 - body)
    head_mask = jnp.maximum(head_mask, _paint_head(canvas, head, paints))
    _paint_cheeks(canvas, face, head, paints)
    _paint_beard(canvas, face, head, paints)
    _paint_mouth(canvas, face, pose, head, paints)
    _paint_nose(canvas, face, head, paints)
    _paint_eyes(canvas, face, pose, head, paints)
    head_mask = jnp.maximum(head_mask, _paint_front_hair(canvas, face, head, paints))
    _paint_glasses(canvas, face, head)

    lx, ly = _landmarks(head)
    points = jnp.stack([cos * lx - sin * ly, sin * lx + cos * ly], -1) * pose.scale + pose.centre
    return jnp.clip(canvas.picture, 0.0, 1.0), jnp.clip(head_mask, 0.0, 1.0), points


def _head(face: Face, pose: Pose, x: Plane, y: Plane) -> _Head:
    half_width = 0.66 + 0.26 * face.width
    lower = jnp.clip(y, 0.0, 1.0)
    half_width_here = half_width * (1.0 - (0.34 - 0.42 * face.jaw) * lower**2)
    shift = pose.yaw * 1.6
    return _Head(
        x=x,
        y=y,
        feature_x=x - shift,
        shift=shift,
        half_width=half_width,
        half_width_here=half_width_here,
        outline=ellipse(x * half_width / half_width_here, y, half_width, 1.0),
        hair_volume=0.06 + 0.24 * face.hair_volume,
        hair_bottom=0.1 + 1.3 * jnp.clip((face.hair_length - _LONG_HAIR) / 0.7, 0.0, 1.0),
        eye_x=0.28 + 0.14 * face.eye_gap,
        half_mouth=0.17 + 0.17 * face.mouth_width,
    )


def _paints(face: Face, pose: Pose, x: Plane) -> _Paints:
    warmth = jnp.stack([1.0 + 0.10 * (face.warmth - 0.5), 1.0, 1.0 - 0.22 * (face.warmth - 0.5)])
    light = pose.brightness * (1.0 + pose.light * jnp.clip(x, -1.2, 1.2))[..., None]
    return _Paints(ramp(_SKIN, face.tone) * warmth, ramp(_HAIR, face.hair_tone), light)


def _landmarks(head: _Head) -> tuple[Float[Array, "5"], Float[Array, "5"]]:
    """x and y, in head coordinates, of the eyes, the tip of the nose and the corners of the mouth."""
    x = [head.shift - head.eye_x, head.shift + head.eye_x, head.shift, head.shift - head.half_mouth]
    x.append(head.shift + head.half_mouth)
    return jnp.stack(x), jnp.array([_EYE_Y, _EYE_Y, _NOSE_Y, _MOUTH_Y, _MOUTH_Y])


# --- what is painted, from back to front; painters return what they add to the head mask, or nothing ------------------


def _paint_hair_behind(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> Plane:
    """Long hair falls behind the head; length 0 is cropped, 1 reaches below the chin."""
    bottom, half_width = head.hair_bottom, head.half_width + head.hair_volume
    y = head.y - (bottom - 1.1) / 2
    back = rounded_box(head.x, y, half_width, (bottom + 1.1) / 2 + 1e-3, 0.55 + 0.2 * face.hair_volume)
    back = jnp.where(face.hair_length > _LONG_HAIR, back, 1.0)
    return canvas.paint(back, paints.hair * paints.light * 0.8)


def _paint_body(
    canvas: Canvas, pose: Pose, paints: _Paints, scene: Int[Array, "3"], x: Plane, y: Plane
) -> tuple[Plane, Plane]:
    """Neck and shirt, in upright coordinates; returns what each of them covers."""
    light = pose.brightness * (1.0 + 0.5 * pose.light * jnp.clip(x, -1.5, 1.5))[..., None]
    neck = canvas.paint(rounded_box(x, y - 1.1, 0.34, 0.55, 0.1), paints.skin * 0.82 * light)
    shoulders = rounded_box(x, y - 3.0, 1.45, 1.65, 0.6)
    shoulders = jnp.maximum(shoulders, 0.42 - jnp.sqrt(x**2 + (y - 1.2) ** 2))
    return neck, canvas.paint(shoulders, jnp.asarray(_PALETTE)[scene[2]] * light)


def _paint_head(canvas: Canvas, head: _Head, paints: _Paints) -> Plane:
    """Ears and head."""
    skin = paints.skin * paints.light
    left, right = (ellipse(x, head.y - 0.05, 0.14, 0.22) for x in (head.x + head.half_width, head.x - head.half_width))
    ears = canvas.paint(jnp.minimum(left, right), skin * 0.88)
    return jnp.maximum(ears, canvas.paint(head.outline, skin))


def _paint_cheeks(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    """Freckles: warm darker cheeks, visible at any size."""
    left, right = (ellipse(head.feature_x + x, head.y - 0.28, 0.24, 0.17) for x in (0.42, -0.42))
    colour = paints.skin * jnp.array([0.98, 0.68, 0.62]) * paints.light
    canvas.paint(jnp.minimum(left, right), colour, 0.75 * jnp.clip((face.freckles - 0.4) / 0.6, 0.0, 1.0))


def _paint_beard(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    """The part of the head below a line that rises towards the ears; the amount sets opacity and height."""
    amount = jnp.clip((face.beard - 0.45) / 0.55, 0.0, 1.0)
    line = 0.62 - 0.35 * amount - 0.45 * jnp.abs(head.feature_x) ** 1.5
    opacity = jnp.where(amount > 0, 0.45 + 0.5 * amount, 0.0)
    canvas.paint(jnp.maximum(head.outline, line - head.y), paints.hair * paints.light * 0.9, opacity)


def _paint_mouth(canvas: Canvas, face: Face, pose: Pose, head: _Head, paints: _Paints) -> None:
    x, half = head.feature_x, head.half_mouth
    curve = head.y - _MOUTH_Y + 0.9 * pose.smile * (x**2 - half**2 * 0.5)
    lips = paints.skin * (0.75 - 0.25 * face.lips) + jnp.array([0.62, 0.10, 0.12]) * (0.25 + 0.5 * face.lips)
    canvas.paint(ellipse(x, curve, half, 0.075 + 0.05 * face.lips + 0.06 * pose.mouth_open), lips * paints.light)
    canvas.paint(ellipse(x, curve, half * 0.8, 0.01 + 0.075 * pose.mouth_open), jnp.array([0.25, 0.06, 0.07]))


def _paint_nose(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    x = head.feature_x - 0.04 * jnp.sign(head.shift)
    nose = ellipse(x, head.y - _NOSE_Y, 0.09 + 0.12 * face.nose, 0.12)
    canvas.paint(nose, paints.skin * paints.light * 0.80)


def _paint_eyes(canvas: Canvas, face: Face, pose: Pose, head: _Head, paints: _Paints) -> None:
    """Eyes and eyebrows."""
    y, radius = head.y - _EYE_Y, 0.13 + 0.09 * face.eye_size
    iris, brow_colour = ramp(_EYES, face.eye_tone), paints.hair * 0.75 * paints.light
    brow_y = head.y - (-0.36 - 0.06 * pose.brow_raise - 0.08 * face.eye_size)
    for side in (-1.0, 1.0):
        x = head.feature_x - side * head.eye_x
        canvas.paint(ellipse(x, y, radius * 1.25, radius), jnp.array([0.97, 0.97, 0.96]))
        gaze_x = x - 0.05 * pose.gaze
        canvas.paint(ellipse(gaze_x, y, radius * 0.72, radius * 0.72), iris)
        canvas.paint(ellipse(gaze_x, y, radius * 0.32, radius * 0.32), jnp.array([0.03, 0.03, 0.04]))
        tilt = (face.brow_tilt - 0.5) * 0.7 * side
        canvas.paint(rounded_box(x, brow_y + tilt * x, 0.23, 0.03 + 0.06 * face.brow_weight, 0.03), brow_colour)


def _paint_front_hair(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> Plane:
    """A rim around the skull above a hair line; the fringe lowers it, the parting slants it."""
    x, volume = head.feature_x, 0.5 * head.hair_volume
    cap = ellipse(head.x, head.y, head.half_width + 0.05 + volume, 1.06 + volume)
    hair_line = -0.82 + 0.40 * face.fringe + (face.parting - 0.5) * 0.9 * x
    hair_line = hair_line + (0.75 - 0.3 * face.fringe) * jnp.abs(x) ** 2
    sides_end = jnp.where(face.hair_length > _LONG_HAIR, head.hair_bottom, -0.05)
    sides = jnp.maximum(jnp.maximum(cap, head.half_width_here - 0.10 - jnp.abs(head.x)), head.y - sides_end)
    front = jnp.minimum(jnp.maximum(cap, head.y - hair_line), sides)
    bald = face.hair_length < 0.08
    return canvas.paint(jnp.where(bald, 1.0, front), paints.hair * paints.light)


def _paint_glasses(canvas: Canvas, face: Face, head: _Head) -> None:
    """Two rims and a bridge."""
    left, right = (ellipse(head.feature_x + x, head.y + 0.06, 0.27, 0.24) for x in (head.eye_x, -head.eye_x))
    bridge = rounded_box(head.feature_x, head.y - _EYE_Y, jnp.maximum(head.eye_x - 0.24, 0.02), 0.03, 0.01)
    frames = jnp.minimum(jnp.abs(jnp.minimum(left, right)) - 0.045, bridge)
    colour = jnp.where(face.glasses > 0.84, jnp.array([0.75, 0.12, 0.12]), jnp.array([0.08, 0.08, 0.10]))
    canvas.paint(frames, colour, jnp.where(face.glasses > 0.68, 1.0, 0.0))


def _background(key: Key[Array, ""], px: Plane, py: Plane, scene: Int[Array, "3"]) -> Float[Array, "h w 3"]:
    """The wall of a scene; px, py are in pixels."""
    u = jax.random.uniform(key, (4,))
    period = 11.0 + 5.0 * u[0]
    sx, sy = px / period + u[1], py / period + u[2]
    edge = 1.0 / period

    def soft(distance: Plane) -> Plane:  # signed, in periods
        return jnp.clip(0.5 - distance / edge, 0.0, 1.0)

    def wave(s: Plane) -> Plane:  # distance to the half period's edge
        return jnp.abs(s - jnp.floor(s) - 0.5) - 0.25

    stripes, bands = soft(wave(sx)), soft(wave(sy))
    checks = stripes * bands + (1 - stripes) * (1 - bands)
    dots = soft(jnp.sqrt((sx - jnp.floor(sx) - 0.5) ** 2 + (sy - jnp.floor(sy) - 0.5) ** 2) - 0.32)
    rings = soft(wave(jnp.sqrt((px - 32.0) ** 2 + (py - 26.0) ** 2) / period + u[3]))
    cover = jnp.stack([jnp.ones_like(px), stripes, bands, checks, dots, rings])[scene[1]]
    colour = jnp.asarray(_PALETTE)[scene[0]]
    return colour * cover[..., None] + _GREY * (1.0 - cover[..., None])
