"""How one picture of the embedded world is painted: a face in a pose, before a background or on plain grey.

A picture is painted from back to front. Head coordinates: x to the right, y downwards, the head about 2 units high, its
centre at the origin; the features move sideways on it as the head turns.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.worlds.portraits.canvas import Canvas, Plane, Scalar, ellipse, lens, ramp, rounded_box

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
GREY = 0.55  # behind aligned faces
WILD_SCALE, ALIGNED_SCALE = 20.3, 24.0  # pixels of half a head, on average, in either view
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
_LONG_HAIR = 0.35  # hair longer than this falls behind the head
EYE_Y, _MOUTH_Y = -0.04, 0.55
_EYE_WHITE, _INK = np.array([0.97, 0.97, 0.96], np.float32), np.array([0.07, 0.05, 0.06], np.float32)


class Face(NamedTuple):
    """The identity of a person: parameters in [0, 1], in the order that identity vectors have."""

    width: Scalar  # of the head, narrow to broad
    jaw: Scalar  # pointed to square
    tone: Scalar  # of the skin, dark to light
    warmth: Scalar  # of the skin, bluish to reddish
    hair_tone: Scalar  # black, browns, red, blonds, grey
    hair_length: Scalar  # below 0.08 bald, to 0.35 cropped, then down to the shoulders
    hair_volume: Scalar  # how far the hair stands off the head
    curls: Scalar  # straight up to 0.5, then wavier and wavier
    fringe: Scalar  # hair line: swept back, then lower, from 0.5 on a straight fringe
    parting: Scalar  # where hair without a fringe parts, left to right
    eye_size: Scalar
    eye_gap: Scalar  # distance between the eyes
    eye_tilt: Scalar  # outer corners down to up; 0.5 is level
    eye_tone: Scalar  # browns, green, blues
    brow_weight: Scalar  # thickness of the eyebrows
    brow_tilt: Scalar  # 0.5 is level
    nose_width: Scalar
    nose_length: Scalar
    mouth_width: Scalar
    lips: Scalar  # fullness and redness
    beard: Scalar  # none up to 0.6, then stubble to a full beard
    glasses: Scalar  # none up to 0.68, then round black frames, above 0.84 square red ones
    blush: Scalar  # none up to 0.4, then redder cheeks


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
    half_width: Scalar
    half_width_here: Plane  # ... at each height: the jaw narrows or squares the lower half
    outline: Plane  # distance to the head
    hair_volume: Scalar  # how far hair stands off the head
    hair_waves: Plane  # how much further it does here: curls
    hair_bottom: Scalar  # y at which long hair ends
    eye_x: Scalar  # of the eyes, left and right of the middle of the face
    nose_y: Scalar  # of the tip
    half_mouth: Scalar
    smile: Scalar  # curvature of the mouth


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
        backdrop = jnp.full((RESOLUTION_PX, RESOLUTION_PX, 3), GREY)
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
    _paint_brows(canvas, face, pose, head, paints)
    _paint_glasses(canvas, face, head)

    lx, ly = _landmarks(head, pose.yaw)
    points = jnp.stack([cos * lx - sin * ly, sin * lx + cos * ly], -1) * pose.scale + pose.centre
    return jnp.clip(canvas.picture, 0.0, 1.0), jnp.clip(head_mask, 0.0, 1.0), points


def _head(face: Face, pose: Pose, x: Plane, y: Plane) -> _Head:
    half_width = 0.76 + 0.14 * face.width
    lower = jnp.clip(y, 0.0, 1.0)
    half_width_here = half_width * (1.0 - (0.30 - 0.36 * face.jaw) * lower**2)
    waves = 0.14 * jnp.maximum(face.curls - 0.5, 0.0)
    return _Head(
        x=x,
        y=y,
        feature_x=_turn(x, half_width, -pose.yaw),
        half_width=half_width,
        half_width_here=half_width_here,
        outline=ellipse(x * half_width / half_width_here, y, half_width, 1.0),
        hair_volume=0.02 + 0.14 * face.hair_volume,
        hair_waves=waves * jnp.cos(16.0 * jnp.arctan2(y - 0.1, x)),
        hair_bottom=0.35 + 1.15 * jnp.clip((face.hair_length - _LONG_HAIR) / (1.0 - _LONG_HAIR), 0.0, 1.0),
        eye_x=0.32 + 0.10 * face.eye_gap,
        nose_y=0.15 + 0.14 * face.nose_length,
        half_mouth=0.18 + 0.15 * face.mouth_width,
        smile=2.2 * pose.smile,
    )


def _turn(x: Float[Array, "*n"], half_width: Scalar, angle: Scalar) -> Float[Array, "*n"]:
    """Where a point of a face goes as the head, a cylinder a little wider than the face, turns by an angle in radians."""
    radius = 1.25 * half_width
    return radius * jnp.sin(jnp.arcsin(jnp.clip(x / radius, -1.0, 1.0)) + angle)


def _paints(face: Face, pose: Pose, x: Plane) -> _Paints:
    warmth = jnp.stack([1.0 + 0.10 * (face.warmth - 0.5), 1.0, 1.0 - 0.22 * (face.warmth - 0.5)])
    light = pose.brightness * (1.0 + pose.light * jnp.clip(x, -1.2, 1.2))[..., None]
    return _Paints(ramp(_SKIN, face.tone) * warmth, ramp(_HAIR, face.hair_tone), light)


def _landmarks(head: _Head, yaw: Scalar) -> tuple[Float[Array, "5"], Float[Array, "5"]]:
    """x and y, in head coordinates, of the eyes, the tip of the nose and the corners of the mouth."""
    x = jnp.stack([-head.eye_x, head.eye_x, jnp.zeros(()), -head.half_mouth, head.half_mouth])
    corners_y = _mouth_line(head, head.half_mouth)
    y = jnp.stack([jnp.asarray(EYE_Y), jnp.asarray(EYE_Y), head.nose_y, corners_y, corners_y])
    return _turn(x, head.half_width, yaw), y


def _mouth_line(head: _Head, x: Plane | Scalar) -> Plane | Scalar:
    """The height at which the lips meet."""
    return _MOUTH_Y - head.smile * (x**2 - 0.5 * head.half_mouth**2)


# --- what is painted, from back to front; painters return what they add to the head mask, or nothing ------------------


def _paint_hair_behind(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> Plane:
    """Long hair falls behind the head, from above the ears to the shoulders."""
    half_width, height = head.half_width + 0.05 + head.hair_volume, head.hair_bottom + 0.9
    back = rounded_box(head.x, head.y - head.hair_bottom + height / 2, half_width, height / 2, 0.3)
    back = jnp.where(face.hair_length > _LONG_HAIR, back - head.hair_waves, 1.0)
    return canvas.paint(back, paints.hair * paints.light * 0.78)


def _paint_body(
    canvas: Canvas, pose: Pose, paints: _Paints, scene: Int[Array, "3"], x: Plane, y: Plane
) -> tuple[Plane, Plane]:
    """Neck and shirt, in upright coordinates; returns what each of them covers."""
    light = pose.brightness * (1.0 + 0.5 * pose.light * jnp.clip(x, -1.5, 1.5))[..., None]
    neck = canvas.paint(rounded_box(x, y - 1.0, 0.36, 0.55, 0.1), paints.skin * 0.8 * light)
    shoulders = rounded_box(x, y - 2.9, 1.35, 1.75, 0.55)
    neckline = jnp.sqrt(x**2 + (y - 1.08) ** 2) - 0.44
    shirt = jnp.asarray(_PALETTE)[scene[2]] * light
    body = canvas.paint(jnp.maximum(shoulders, -neckline), shirt)
    canvas.paint(jnp.maximum(jnp.abs(neckline - 0.04) - 0.04, shoulders), shirt * 0.75)
    return neck, body


def _paint_head(canvas: Canvas, head: _Head, paints: _Paints) -> Plane:
    """Ears and head, with a thin darker edge as a draughtsman gives it."""
    skin = paints.skin * paints.light
    left, right = (ellipse(x, head.y - 0.02, 0.14, 0.2) for x in (head.x + head.half_width, head.x - head.half_width))
    ears = canvas.paint(jnp.minimum(left, right), skin * 0.86)
    covered = canvas.paint(head.outline, skin * 0.72)
    canvas.paint(head.outline + 0.045, skin)
    return jnp.maximum(ears, covered)


def _paint_cheeks(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    """Blush without an edge."""
    x, y = jnp.abs(head.feature_x) - 0.48, head.y - 0.3
    colour = paints.skin * jnp.array([1.0, 0.62, 0.6]) * paints.light
    soft = jnp.exp(-((x / 0.2) ** 2) - (y / 0.14) ** 2)
    canvas.paint(head.outline + 0.045, colour, 0.9 * jnp.clip((face.blush - 0.4) / 0.6, 0.0, 1.0) * soft)


def _paint_beard(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    """Around the mouth and along the jaw up to the ears; the amount sets opacity and height."""
    amount = jnp.clip((face.beard - 0.6) / 0.4, 0.0, 1.0)
    x, y = head.feature_x, head.y
    clean = ellipse(x, y + 0.12, 0.62 - 0.06 * amount, 0.74 - 0.14 * amount)
    jaw = jnp.maximum(jnp.maximum(head.outline, -clean), 0.1 - y)
    moustache = ellipse(x, y - _MOUTH_Y + 0.13 + 0.6 * x**2, head.half_mouth + 0.06, 0.08)
    opacity = jnp.where(amount > 0, 0.4 + 0.6 * jnp.minimum(2.0 * amount, 1.0), 0.0)
    canvas.paint(jnp.minimum(jaw, moustache), paints.hair * paints.light * 0.88, opacity)


def _paint_mouth(canvas: Canvas, face: Face, pose: Pose, head: _Head, paints: _Paints) -> None:
    """Lips that taper towards the corners, dark where they meet; an open mouth shows its upper teeth."""
    x, half = head.feature_x, head.half_mouth
    y = head.y - _mouth_line(head, x)
    red = paints.skin * (0.8 - 0.3 * face.lips) + jnp.array([0.62, 0.10, 0.14]) * (0.25 + 0.5 * face.lips)
    opened = 0.11 * pose.mouth_open
    inside = lens(x, y, 0.86 * half, opened + 0.02)
    canvas.paint(lens(x, y, half, 0.06 + 0.06 * face.lips + opened), red * paints.light)
    canvas.paint(inside, jnp.array([0.28, 0.06, 0.08]))
    canvas.paint(
        jnp.maximum(inside + 0.01, y + 0.2 * opened), jnp.asarray(_EYE_WHITE), jnp.clip(6.0 * opened - 0.2, 0.0, 1.0)
    )


def _paint_nose(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> None:
    """A shaded side of the bridge, the tip, and the shadow below it."""
    x, y, half = head.feature_x, head.y - head.nose_y, 0.09 + 0.09 * face.nose_width
    skin = paints.skin * paints.light
    bridge = jnp.maximum(jnp.abs(x + 0.6 * half + 0.15 * y) - 0.025, jnp.abs(y + 0.18) - 0.18)
    canvas.paint(bridge, skin * 0.82, 0.7)
    canvas.paint(ellipse(x, y, half, 0.085), skin * 0.86)
    canvas.paint(jnp.maximum(jnp.abs(y - 0.075 + 1.2 * x**2) - 0.025, jnp.abs(x) - half), skin * 0.55)


def _paint_eyes(canvas: Canvas, face: Face, pose: Pose, head: _Head, paints: _Paints) -> None:
    """Almonds under a dark lid, the iris cut by them, a spark of light in the pupil."""
    half_width, half_height = 0.19 + 0.05 * face.eye_size, 0.125 + 0.055 * face.eye_size
    iris, lid = ramp(_EYES, face.eye_tone), 0.3 * paints.skin * paints.light
    for side in (-1.0, 1.0):
        x = head.feature_x - side * head.eye_x
        y = head.y - EYE_Y + 0.5 * (face.eye_tilt - 0.5) * side * x
        white = lens(x, y, half_width, half_height)
        gaze_x = x - 0.045 * pose.gaze
        canvas.paint(jnp.maximum(lens(x, y + 0.03, half_width + 0.05, half_height + 0.03), y), lid)
        canvas.paint(white, jnp.asarray(_EYE_WHITE))
        canvas.paint(jnp.maximum(white, ellipse(gaze_x, y, 0.115, 0.115)), iris)
        canvas.paint(jnp.maximum(white, ellipse(gaze_x, y, 0.058, 0.058)), jnp.asarray(_INK))
        canvas.paint(jnp.maximum(white, ellipse(gaze_x + 0.05, y + 0.045, 0.036, 0.036)), jnp.asarray(_EYE_WHITE))


def _paint_brows(canvas: Canvas, face: Face, pose: Pose, head: _Head, paints: _Paints) -> None:
    """Arched, thinner towards the temples; on top of a fringe, as they are drawn."""
    colour = paints.hair * 0.7 * paints.light
    for side in (-1.0, 1.0):
        x = side * (head.feature_x - side * head.eye_x)  # towards the temple
        y = head.y - (EYE_Y - 0.28 - 0.06 * face.eye_size - 0.05 * pose.brow_raise)
        y = y + 0.6 * (face.brow_tilt - 0.5) * x - 1.1 * x**2
        half_height = (0.03 + 0.05 * face.brow_weight) * (1.0 - 0.9 * jnp.clip(x + 0.05, 0.0, 0.4))
        canvas.paint(jnp.maximum(jnp.abs(y) - half_height, jnp.abs(x) - 0.23), colour)


def _paint_front_hair(canvas: Canvas, face: Face, head: _Head, paints: _Paints) -> Plane:
    """A cap above a hair line, which is a dome around the parting or a fringe, and the sides beside the face."""
    x = head.feature_x
    cap = ellipse(head.x, head.y, head.half_width + 0.05 + head.hair_volume, 1.02 + head.hair_volume) - head.hair_waves
    from_parting = x - 0.6 * (face.parting - 0.5)
    dome = -0.8 + 0.3 * face.fringe + 0.8 * from_parting**2
    fringe = -0.46 + 0.16 * (face.fringe - 0.5) + 0.25 * x**2
    hair_line = jnp.where(face.fringe > 0.5, fringe, dome)
    sides_end = jnp.where(face.hair_length > _LONG_HAIR, head.hair_bottom - 0.15, -0.1)
    sides = jnp.maximum(jnp.maximum(cap, head.half_width_here - 0.07 - jnp.abs(head.x)), head.y - sides_end)
    front = jnp.minimum(jnp.maximum(cap, 0.8 * (head.y - hair_line)), sides)
    front = jnp.where(face.hair_length < 0.08, 1.0, front)
    covered = canvas.paint(front, paints.hair * paints.light)
    shine = jnp.abs(ellipse(head.x, head.y, head.half_width - 0.08, 0.86)) - 0.05
    shine = jnp.maximum(jnp.maximum(shine, front + 0.04), head.y + 0.5)
    canvas.paint(shine, paints.hair * paints.light + 0.16, 0.8)
    return covered


def _paint_glasses(canvas: Canvas, face: Face, head: _Head) -> None:
    """Two rims, a bridge and the sides; the lenses are clear."""
    red = face.glasses > 0.84
    x, y = jnp.abs(head.feature_x) - head.eye_x, head.y - EYE_Y
    lenses = jnp.where(red, rounded_box(x, y, 0.27, 0.22, 0.06), ellipse(x, y, 0.27, 0.26))
    bridge = jnp.maximum(jnp.abs(y + 0.04) - 0.03, jnp.abs(head.feature_x) - jnp.maximum(head.eye_x - 0.26, 0.02))
    arms = jnp.maximum(jnp.maximum(jnp.abs(y + 0.04) - 0.03, 0.27 - x), jnp.abs(head.x) - head.half_width)
    frames = jnp.minimum(jnp.minimum(jnp.abs(lenses) - 0.036, bridge), arms)
    colour = jnp.where(red, jnp.array([0.75, 0.12, 0.12]), jnp.array([0.08, 0.08, 0.10]))
    canvas.paint(frames, colour, jnp.where(face.glasses > 0.68, 1.0, 0.0))


def _background(key: Key[Array, ""], px: Plane, py: Plane, scene: Int[Array, "3"]) -> Float[Array, "h w 3"]:
    """The wall of a scene; px, py are in pixels."""
    u = jax.random.uniform(key, (4,))
    period = 9.0 + 3.0 * u[0]
    sx, sy = px / period + u[1], py / period + u[2]
    edge = 1.0 / period

    def soft(distance: Plane) -> Plane:  # signed, in periods
        return jnp.clip(0.5 - distance / edge, 0.0, 1.0)

    def wave(s: Plane) -> Plane:  # distance to the half period's edge
        return jnp.abs(s - jnp.floor(s) - 0.5) - 0.25

    stripes, bands = soft(wave(sx)), soft(wave(sy))
    checks = stripes * bands + (1 - stripes) * (1 - bands)
    dots = soft(jnp.sqrt((sx - jnp.floor(sx) - 0.5) ** 2 + (sy - jnp.floor(sy) - 0.5) ** 2) - 0.32)
    rings = soft(wave(jnp.sqrt((px - 32.0) ** 2 + (py - 25.0) ** 2) / period + u[3]))
    cover = jnp.stack([jnp.ones_like(px), stripes, bands, checks, dots, rings])[scene[1]]
    colour = jnp.asarray(_PALETTE)[scene[0]]
    return colour * cover[..., None] + GREY * (1.0 - cover[..., None])
