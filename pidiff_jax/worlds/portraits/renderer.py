"""The embedded world: a deterministic renderer of portraits with identities, scenes, captions, masks and landmarks.

A person is a vector of identity parameters. A picture of a person adds what is not identity: expression, pose, light,
clothes and background. There are two views, as in the real method: *aligned* face crops on plain grey, which the
W+ encoder reads, and *wild* pictures with a caption, which the diffusion model learns to draw. Everything is a pure
function of (person id, picture id), so any part of the world can be made again anywhere.

Shapes are signed distance functions with analytic anti-aliasing. Head coordinates: x to the right, y downwards, the
head about 2 units high, its centre at the origin.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RESOLUTION_PX = 64
NUM_IDENTITY_PARAMETERS = 20
WORLD_SEED = 2505
WORLD_VERSION = 1  # raise it with every change of pictures, masks, scenes or captions: cached records are known by it

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
PATTERNS = ("plain", "striped", "banded", "checked", "dotted", "ringed")
SCENE_ATTRIBUTES = {"background": COLOURS, "pattern": PATTERNS, "shirt": COLOURS}
CAPTION_TEMPLATES = (
    "a person in a {shirt} shirt before a {background} {pattern} wall",
    "a {background} {pattern} wall behind a person in a {shirt} shirt",
    "a portrait of a person wearing a {shirt} shirt , {background} {pattern} background",
)

# First person id of each split; the splits never overlap. The judges (recogniser, scene classifier) have people of their own.
SPLIT_STARTS = {"train": 0, "validation": 1_000_000, "test": 2_000_000, "judges": 3_000_000}

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
_SKIN = np.array([(66, 41, 30), (122, 78, 54), (178, 122, 88), (222, 172, 136), (250, 218, 196)], np.float32) / 255.0
_HAIR = (
    np.array(
        [(22, 20, 24), (74, 44, 26), (128, 74, 36), (176, 74, 28), (206, 156, 74), (236, 208, 140), (208, 206, 208)],
        np.float32,
    )
    / 255.0
)
_EYES = np.array([(70, 40, 20), (120, 84, 36), (70, 130, 70), (60, 120, 190), (130, 160, 185)], np.float32) / 255.0

View = Literal["aligned", "wild"]


class Picture(NamedTuple):
    """One picture (or, after `draw`, a batch of them).

    pixels: (64, 64, 3) in [0, 1]. head_mask: (64, 64) in [0, 1], head with hair. landmarks: (5, 2) pixels (x, y): left eye,
    right eye, nose tip, left and right mouth corner as seen in the picture. scene: (3,) indices into SCENE_ATTRIBUTES.
    """

    pixels: Float[Array, "*b h w 3"]
    head_mask: Float[Array, "*b h w"]
    landmarks: Float[Array, "*b 5 2"]
    scene: Int[Array, "*b 3"]


def person_ids(split: str, count: int, start: int = 0) -> np.ndarray:
    """Ids of `count` people of a split, from its `start`-th person on.

    Raises:
        ValueError: no such split, nobody asked for, or more people than a split has.
    """
    if split not in SPLIT_STARTS:
        raise ValueError(f"expected a split of {sorted(SPLIT_STARTS)}, got {split!r}; choose one of them")
    if count < 1:
        raise ValueError(f"expected at least 1 person, got {count}; ask for more")
    if start + count > 1_000_000:
        raise ValueError(f"expected at most 1000000 people in a split, got start {start} + count {count}; take fewer")
    return np.arange(start, start + count, dtype=np.int32) + SPLIT_STARTS[split]


def is_held_out_scene(scene: np.ndarray) -> np.ndarray:
    """Whether a scene (..., 3) is one of the eighth that training never shows: its captions are the held-out prompts."""
    background, pattern, shirt = np.moveaxis(np.asarray(scene), -1, 0)
    return (background + 2 * pattern + 3 * shirt) % 8 == 0


def caption(scene: Sequence[int] | Int[np.ndarray, "3"], template: int = 0) -> str:
    """The caption of a scene, in one of `len(CAPTION_TEMPLATES)` wordings."""
    words = {name: values[int(index)] for (name, values), index in zip(SCENE_ATTRIBUTES.items(), scene, strict=True)}
    return CAPTION_TEMPLATES[template % len(CAPTION_TEMPLATES)].format(**words)


def caption_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    words = {word for values in SCENE_ATTRIBUTES.values() for word in values}
    for template in CAPTION_TEMPLATES:
        words |= {word for word in template.split() if not word.startswith("{")}
    return sorted(words)


def held_out_scenes(count: int, split: str = "test", seed: int = 0) -> np.ndarray:
    """`count` different held-out scenes (count, 3) in random order; no scene is in both splits.

    split: "test" or "validation", so that choices made on one are not made on the prompts of the other.

    Raises:
        ValueError: another split, or not 1 to 24 scenes, all that a split has.
    """
    if split not in ("test", "validation"):
        raise ValueError(f"expected the split 'test' or 'validation', got {split!r}; training shows no held-out scene")
    grid = np.stack(np.meshgrid(*(np.arange(len(v)) for v in SCENE_ATTRIBUTES.values()), indexing="ij"), -1).reshape(
        -1, 3
    )
    grid = grid[is_held_out_scene(grid)]
    order = np.random.default_rng(seed).permutation(len(grid))
    half = len(grid) // 2
    chosen = order[:half] if split == "test" else order[half:]
    if not 1 <= count <= len(chosen):
        raise ValueError(f"expected 1 to {len(chosen)} held-out scenes of a split, got {count}; correct the number")
    return grid[chosen[:count]].astype(np.int32)


def identity_parameters(person_id: Int[Array, ""]) -> Float[Array, "p"]:
    """The identity of a person: 20 values, uniform in [0, 1]."""
    key = jax.random.fold_in(jax.random.key(WORLD_SEED), person_id)
    return jax.random.uniform(key, (NUM_IDENTITY_PARAMETERS,))


def draw(person_id: np.ndarray, picture_id: np.ndarray, view: View, chunk: int = 128) -> Picture:
    """Draws one picture per (person id, picture id) pair, both int32 (n,); returns numpy arrays.

    A person's pictures with different picture ids differ in everything but identity. Wild pictures never show a held-out scene.
    """
    return _in_chunks(_draw_batch, (person_id, picture_id), view, chunk)


def draw_identity(
    identity: np.ndarray, person_id: np.ndarray, picture_id: np.ndarray, view: View, chunk: int = 128
) -> Picture:
    """Draws given identity parameters (n, 20) with the nuisance of the given (person id, picture id) pairs."""
    return _in_chunks(_draw_identity_batch, (identity, person_id, picture_id), view, chunk)


def _in_chunks(function, arrays, view: View, chunk: int) -> Picture:
    if view not in ("aligned", "wild"):
        raise ValueError(f"expected view 'aligned' or 'wild', got {view!r}")
    count = len(arrays[0])
    parts = []
    for start in range(0, count, chunk):
        piece = [np.asarray(a[start : start + chunk]) for a in arrays]
        short = chunk - len(piece[0])  # one compiled shape: the last piece is padded and cut
        piece = [np.pad(a, ((0, short),) + ((0, 0),) * (a.ndim - 1), mode="edge") for a in piece]
        parts.append(jax.tree.map(lambda a, keep=chunk - short: np.asarray(a)[:keep], function(*piece, view)))
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


@functools.partial(jax.jit, static_argnums=2)
def _draw_batch(person_id, picture_id, view):
    return jax.vmap(lambda p, i: _draw_one(identity_parameters(p), p, i, view))(person_id, picture_id)


@functools.partial(jax.jit, static_argnums=3)
def _draw_identity_batch(identity, person_id, picture_id, view):
    return jax.vmap(lambda identity, p, i: _draw_one(identity, p, i, view))(identity, person_id, picture_id)


# --- one picture -----------------------------------------------------------------------------------------------------


class _Pose(NamedTuple):
    centre: Array
    scale: Array  # pixels per head unit
    roll: Array
    yaw: Array
    smile: Array
    mouth_open: Array
    brow_raise: Array
    gaze: Array
    light: Array
    brightness: Array


def _draw_one(identity, person_id, picture_id, view: View) -> Picture:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(WORLD_SEED + 1), person_id), picture_id)
    key_pose, key_scene, key_layout = jax.random.split(jax.random.fold_in(key, 0 if view == "aligned" else 1), 3)
    pose = _sample_pose(key_pose, view)
    scene = _sample_scene(key_scene)

    grid = jnp.arange(RESOLUTION_PX, dtype=jnp.float32) + 0.5
    px, py = jnp.meshgrid(grid, grid)
    cos, sin = jnp.cos(pose.roll), jnp.sin(pose.roll)
    dx, dy = (px - pose.centre[0]) / pose.scale, (py - pose.centre[1]) / pose.scale
    x, y = cos * dx + sin * dy, -sin * dx + cos * dy

    canvas = _Canvas(1.0 / pose.scale)
    if view == "wild":
        canvas.picture = _background(key_layout, px, py, scene)
    else:
        canvas.picture = jnp.full((RESOLUTION_PX, RESOLUTION_PX, 3), _GREY)
    head_mask, landmarks = _paint_person(canvas, identity, pose, scene, x, y, dx, dy, view == "wild")

    lx, ly = landmarks[:, 0], landmarks[:, 1]
    points = jnp.stack([cos * lx - sin * ly, sin * lx + cos * ly], -1) * pose.scale + pose.centre
    pixels = jnp.clip(canvas.picture, 0.0, 1.0)
    return Picture(pixels, jnp.clip(head_mask, 0.0, 1.0), points, scene)


def _sample_pose(key, view: View) -> _Pose:
    u = jax.random.uniform(key, (11,), minval=-1.0, maxval=1.0)
    wild = view == "wild"
    spread = 5.0 if wild else 1.0
    centre = jnp.array([32.0, 28.0 if wild else 32.0]) + jnp.array([u[0], 0.5 * u[1]]) * spread
    return _Pose(
        centre=centre,
        scale=17.0 + 2.0 * u[2] if wild else 24.0 + 0.8 * u[2],
        roll=(0.22 if wild else 0.05) * u[3],
        yaw=(0.16 if wild else 0.08) * u[4],
        smile=u[5],
        mouth_open=jnp.maximum(u[6], 0.0),
        brow_raise=u[7],
        gaze=u[8],
        light=(0.30 if wild else 0.15) * u[9],
        brightness=1.0 + (0.10 if wild else 0.06) * u[10],
    )


def _sample_scene(key) -> Int[Array, "3"]:
    k1, k2, k3 = jax.random.split(key, 3)
    background, pattern = jax.random.randint(k1, (), 0, 8), jax.random.randint(k2, (), 0, 6)
    # Of the eight shirts exactly one would make a held-out scene, since 3 has an inverse (itself) modulo 8: step over it.
    held_out = (-3 * (background + 2 * pattern)) % 8
    shirt = (held_out + 1 + jax.random.randint(k3, (), 0, 7)) % 8
    return jnp.stack([background, pattern, shirt]).astype(jnp.int32)


class _Canvas:
    """Paints shapes over each other; `pixel` is the size of a pixel in head units, the width of the anti-aliased edge."""

    def __init__(self, pixel):
        self.pixel = pixel
        self.picture = None

    def coverage(self, distance):
        return jnp.clip(0.5 - distance / self.pixel, 0.0, 1.0)

    def paint(self, distance, colour, opacity=1.0):
        alpha = (self.coverage(distance) * opacity)[..., None]
        self.picture = self.picture * (1.0 - alpha) + colour * alpha
        return alpha[..., 0]


def _ellipse(x, y, rx, ry):
    """Distance to an ellipse, exact on its edge to first order."""
    k = jnp.sqrt((x / rx) ** 2 + (y / ry) ** 2) + 1e-6
    gradient = jnp.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2) + 1e-6
    return k * (k - 1.0) / gradient


def _rounded_box(x, y, rx, ry, radius):
    qx, qy = jnp.abs(x) - rx + radius, jnp.abs(y) - ry + radius
    outside = jnp.sqrt(jnp.maximum(qx, 0.0) ** 2 + jnp.maximum(qy, 0.0) ** 2 + 1e-9)
    return outside + jnp.minimum(jnp.maximum(qx, qy), 0.0) - radius


def _ramp(table: np.ndarray, position):
    """Linear interpolation in a table of colours; position in [0, 1]."""
    position = jnp.clip(position, 0.0, 1.0) * (len(table) - 1)
    low = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, len(table) - 2)
    table = jnp.asarray(table)
    return table[low] + (table[low + 1] - table[low]) * (position - low)


def _background(key, px, py, scene):
    u = jax.random.uniform(key, (4,))
    period = 11.0 + 5.0 * u[0]
    sx, sy = px / period + u[1], py / period + u[2]
    edge = 1.0 / period

    def soft(distance):  # signed, in periods
        return jnp.clip(0.5 - distance / edge, 0.0, 1.0)

    def wave(s):  # distance to the half period's edge
        return jnp.abs(s - jnp.floor(s) - 0.5) - 0.25

    stripes, bands = soft(wave(sx)), soft(wave(sy))
    checks = stripes * bands + (1 - stripes) * (1 - bands)
    dots = soft(jnp.sqrt((sx - jnp.floor(sx) - 0.5) ** 2 + (sy - jnp.floor(sy) - 0.5) ** 2) - 0.32)
    rings = soft(wave(jnp.sqrt((px - 32.0) ** 2 + (py - 26.0) ** 2) / period + u[3]))
    cover = jnp.stack([jnp.ones_like(px), stripes, bands, checks, dots, rings])[scene[1]]
    colour = jnp.asarray(_PALETTE)[scene[0]]
    return colour * cover[..., None] + _GREY * (1.0 - cover[..., None])


def _paint_person(canvas, identity, pose, scene, x, y, dx, dy, with_body):
    """Back to front: long hair, neck and shirt, ears, head, features, front hair, glasses."""
    (width, jaw, tone, warmth, hair_tone, hair_length, hair_volume, fringe, parting, eye_size, eye_gap, eye_tone) = (
        identity[:12]
    )
    (brow_weight, brow_tilt, nose, mouth_width, lips, beard, glasses, freckles) = identity[12:]

    skin = _ramp(_SKIN, tone) * jnp.stack([1.0 + 0.10 * (warmth - 0.5), 1.0, 1.0 - 0.22 * (warmth - 0.5)])
    hair = _ramp(_HAIR, hair_tone)
    light = pose.brightness * (1.0 + pose.light * jnp.clip(x, -1.2, 1.2))[..., None]
    skin_lit, hair_lit = skin * light, hair * light

    rx = 0.66 + 0.26 * width
    # The jaw narrows (or squares) the lower half of the head.
    lower = jnp.clip(y, 0.0, 1.0)
    rx_here = rx * (1.0 - (0.34 - 0.42 * jaw) * lower**2)
    head = _ellipse(x * rx / rx_here, y, rx, 1.0)

    # Long hair falls behind the head; length 0 is cropped, 1 reaches below the chin.
    volume = 0.06 + 0.24 * hair_volume
    bottom = 0.1 + 1.3 * jnp.clip((hair_length - 0.3) / 0.7, 0.0, 1.0)
    back = _rounded_box(x, y - (bottom - 1.1) / 2, rx + volume, (bottom + 1.1) / 2 + 1e-3, 0.55 + 0.2 * hair_volume)
    back = jnp.where(hair_length > 0.3, back, 1.0)
    head_mask = canvas.paint(back, hair_lit * 0.8)

    if with_body:
        shirt = jnp.asarray(_PALETTE)[scene[2]]
        body_light = pose.brightness * (1.0 + 0.5 * pose.light * jnp.clip(dx, -1.5, 1.5))[..., None]
        neck = _rounded_box(dx, dy - 1.1, 0.34, 0.55, 0.1)
        neck_mask = canvas.paint(neck, skin * 0.82 * body_light)
        shoulders = _rounded_box(dx, dy - 3.0, 1.45, 1.65, 0.6)
        shoulders = jnp.maximum(shoulders, 0.42 - jnp.sqrt(dx**2 + (dy - 1.2) ** 2))
        body = canvas.paint(shoulders, shirt * body_light)
        head_mask = head_mask * (1.0 - neck_mask) * (1.0 - body)

    ears = jnp.minimum(_ellipse(x - rx, y - 0.05, 0.14, 0.22), _ellipse(x + rx, y - 0.05, 0.14, 0.22))
    head_mask = jnp.maximum(head_mask, canvas.paint(ears, skin_lit * 0.88))
    head_mask = jnp.maximum(head_mask, canvas.paint(head, skin_lit))

    shift = pose.yaw * 1.6  # turning the head moves the features sideways
    fx = x - shift
    # Freckles: warm darker cheeks, visible at any size.
    cheeks = jnp.minimum(_ellipse(fx - 0.42, y - 0.28, 0.24, 0.17), _ellipse(fx + 0.42, y - 0.28, 0.24, 0.17))
    canvas.paint(
        cheeks, skin * jnp.array([0.98, 0.68, 0.62]) * light, 0.75 * jnp.clip((freckles - 0.4) / 0.6, 0.0, 1.0)
    )

    # Beard: the part of the head below a line that rises towards the ears; the amount sets opacity and height.
    amount = jnp.clip((beard - 0.45) / 0.55, 0.0, 1.0)
    line = 0.62 - 0.35 * amount - 0.45 * jnp.abs(fx) ** 1.5
    canvas.paint(jnp.maximum(head, line - y), hair_lit * 0.9, jnp.where(amount > 0, 0.45 + 0.5 * amount, 0.0))

    mouth_y, half = 0.52, 0.17 + 0.17 * mouth_width
    curve = y - mouth_y + 0.9 * pose.smile * (fx**2 - half**2 * 0.5)
    lip_colour = skin * (0.75 - 0.25 * lips) + jnp.array([0.62, 0.10, 0.12]) * (0.25 + 0.5 * lips)
    canvas.paint(_ellipse(fx, curve, half, 0.075 + 0.05 * lips + 0.06 * pose.mouth_open), lip_colour * light)
    canvas.paint(_ellipse(fx, curve, half * 0.8, 0.01 + 0.075 * pose.mouth_open), jnp.array([0.25, 0.06, 0.07]))

    nose_width = 0.09 + 0.12 * nose
    canvas.paint(_ellipse(fx - 0.04 * jnp.sign(shift), y - 0.2, nose_width, 0.12), skin_lit * 0.80)

    eye_x, eye_r = 0.28 + 0.14 * eye_gap, 0.13 + 0.09 * eye_size
    iris, hair_dark = _ramp(_EYES, eye_tone), hair * 0.75
    brow_y = -0.36 - 0.06 * pose.brow_raise - 0.08 * eye_size
    for side in (-1.0, 1.0):
        ex = fx - side * eye_x
        canvas.paint(_ellipse(ex, y + 0.08, eye_r * 1.25, eye_r), jnp.array([0.97, 0.97, 0.96]))
        gx = ex - 0.05 * pose.gaze
        canvas.paint(_ellipse(gx, y + 0.08, eye_r * 0.72, eye_r * 0.72), iris)
        canvas.paint(_ellipse(gx, y + 0.08, eye_r * 0.32, eye_r * 0.32), jnp.array([0.03, 0.03, 0.04]))
        tilt = (brow_tilt - 0.5) * 0.7 * side
        canvas.paint(_rounded_box(ex, y - brow_y + tilt * ex, 0.23, 0.03 + 0.06 * brow_weight, 0.03), hair_dark * light)

    # Front hair: a rim around the skull above a hair line; the fringe lowers it, the parting slants it.
    cap = _ellipse(x, y, rx + 0.05 + 0.5 * volume, 1.06 + 0.5 * volume)
    hair_line = -0.82 + 0.40 * fringe + (parting - 0.5) * 0.9 * fx + (0.75 - 0.3 * fringe) * jnp.abs(fx) ** 2
    front = jnp.maximum(cap, y - hair_line)
    sides = jnp.where(hair_length > 0.3, bottom, -0.05)
    front = jnp.minimum(front, jnp.maximum(jnp.maximum(cap, rx_here - 0.10 - jnp.abs(x)), y - sides))
    bald = hair_length < 0.08
    head_mask = jnp.maximum(head_mask, canvas.paint(jnp.where(bald, 1.0, front), hair_lit))

    # Glasses: two rims and a bridge for the people whose parameter is above 0.68.
    rims = jnp.minimum(_ellipse(fx - eye_x, y + 0.06, 0.27, 0.24), _ellipse(fx + eye_x, y + 0.06, 0.27, 0.24))
    bridge = _rounded_box(fx, y + 0.08, jnp.maximum(eye_x - 0.24, 0.02), 0.03, 0.01)
    frame_colour = jnp.where(glasses > 0.84, jnp.array([0.75, 0.12, 0.12]), jnp.array([0.08, 0.08, 0.10]))
    canvas.paint(jnp.minimum(jnp.abs(rims) - 0.045, bridge), frame_colour, jnp.where(glasses > 0.68, 1.0, 0.0))

    landmarks = [
        (shift - eye_x, -0.08),
        (shift + eye_x, -0.08),
        (shift, 0.2),
        (shift - half, mouth_y),
        (shift + half, mouth_y),
    ]
    return head_mask, jnp.stack([jnp.stack([jnp.asarray(a), jnp.asarray(b)]) for a, b in landmarks])
