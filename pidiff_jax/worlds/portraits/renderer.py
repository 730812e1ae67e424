"""The embedded world: a deterministic renderer of portraits with identities, scenes, captions, masks and landmarks.

A person is a vector of identity parameters. A picture of a person adds what is not identity: expression, pose, light,
clothes and background. There are two views, as in the real method: *aligned* face crops on plain grey, which the
W+ encoder reads, and *wild* pictures with a caption, which the diffusion model learns to draw. Everything is a pure
function of (person id, picture id), so any part of the world can be made again anywhere.

How a picture is painted, once it is known what is in it: `painter.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.arrays import in_batches
from pidiff_jax.worlds.portraits.painter import ALIGNED_SCALE, WILD_SCALE, Face, Pose, View, paint_portrait
from pidiff_jax.worlds.portraits.painter import RESOLUTION_PX as RESOLUTION_PX

NUM_IDENTITY_PARAMETERS = len(Face._fields)
WORLD_SEED = 2505
WORLD_VERSION = (
    3  # raise it with every change of pictures, masks, scenes, captions or weights, in experiments/common.py too
)

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
    """The identity of a person: values, uniform in [0, 1], in the order of `Face`."""
    key = jax.random.fold_in(jax.random.key(WORLD_SEED), person_id)
    return jax.random.uniform(key, (NUM_IDENTITY_PARAMETERS,))


def identities(person_id: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n p"]:
    """`identity_parameters` of many people."""
    return np.asarray(jax.vmap(identity_parameters)(jnp.asarray(person_id)))


def draw(person_id: np.ndarray, picture_id: np.ndarray, view: View, chunk: int = 128) -> Picture:
    """Draws one picture per (person id, picture id) pair, both int32 (n,); returns numpy arrays.

    A person's pictures with different picture ids differ in everything but identity. Wild pictures never show a held-out scene.
    """
    return _in_chunks(_draw_batch, (person_id, picture_id), view, chunk)


def draw_identity(
    identity: np.ndarray, person_id: np.ndarray, picture_id: np.ndarray, view: View, chunk: int = 128
) -> Picture:
    """Draws given identity parameters (n, p) with the nuisance of the given (person id, picture id) pairs."""
    return _in_chunks(_draw_identity_batch, (identity, person_id, picture_id), view, chunk)


def poses(person_id: np.ndarray, picture_id: np.ndarray, view: View) -> Pose:
    """What `draw` gives the pictures beside identity and scene: a `Pose` of numpy arrays (n,), its centre (n, 2)."""
    one = lambda person, picture: _sample_pose(_keys(person, picture, view)[0], view)  # noqa: E731
    return jax.tree.map(np.asarray, jax.vmap(one)(person_id, picture_id))


def _in_chunks(function: Callable[..., Picture], arrays: Sequence[np.ndarray], view: View, chunk: int) -> Picture:
    if view not in ("aligned", "wild"):
        raise ValueError(f"expected view 'aligned' or 'wild', got {view!r}")
    return in_batches(lambda *rows: function(*rows, view), *arrays, batch_size=chunk, doing="rendering")


@functools.partial(jax.jit, static_argnums=2)
def _draw_batch(person_id, picture_id, view):
    return jax.vmap(lambda p, i: _draw_one(identity_parameters(p), p, i, view))(person_id, picture_id)


@functools.partial(jax.jit, static_argnums=3)
def _draw_identity_batch(identity, person_id, picture_id, view):
    return jax.vmap(lambda identity, p, i: _draw_one(identity, p, i, view))(identity, person_id, picture_id)


def _draw_one(
    identity: Float[Array, "p"], person_id: Int[Array, ""], picture_id: Int[Array, ""], view: View
) -> Picture:
    key_pose, key_scene, key_layout = _keys(person_id, picture_id, view)
    pose = _sample_pose(key_pose, view)
    scene = _sample_scene(key_scene)
    pixels, head_mask, landmarks = paint_portrait(Face(*identity), pose, scene, key_layout, view)
    return Picture(pixels, head_mask, landmarks, scene)


def _keys(person_id: Int[Array, ""], picture_id: Int[Array, ""], view: View) -> Key[Array, "3"]:
    """Of a picture's pose, scene and layout."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(WORLD_SEED + 1), person_id), picture_id)
    return jax.random.split(jax.random.fold_in(key, 0 if view == "aligned" else 1), 3)


def _sample_pose(key: Key[Array, ""], view: View) -> Pose:
    u = jax.random.uniform(key, (11,), minval=-1.0, maxval=1.0)
    wild = view == "wild"
    centre = jnp.array([32.0, 26.0]) + jnp.array([5.0 * u[0], 2.0 * u[1]]) if wild else 32.0 + u[:2]
    return Pose(
        centre=centre,
        scale=WILD_SCALE + 1.0 * u[2] if wild else ALIGNED_SCALE + 0.8 * u[2],
        roll=(0.18 if wild else 0.05) * u[3],
        yaw=(0.32 if wild else 0.12) * u[4],
        smile=0.3 + 0.7 * u[5],
        mouth_open=jnp.maximum(u[6], 0.0),
        brow_raise=u[7],
        gaze=u[8],
        light=(0.25 if wild else 0.15) * u[9],
        brightness=1.0 + (0.10 if wild else 0.06) * u[10],
    )


def _sample_scene(key: Key[Array, ""]) -> Int[Array, "3"]:
    k1, k2, k3 = jax.random.split(key, 3)
    background, pattern = jax.random.randint(k1, (), 0, 8), jax.random.randint(k2, (), 0, 6)
    # Of the eight shirts exactly one would make a held-out scene, since 3 has an inverse (itself) modulo 8: step over it.
    held_out = (-3 * (background + 2 * pattern)) % 8
    shirt = (held_out + 1 + jax.random.randint(k3, (), 0, 7)) % 8
    return jnp.stack([background, pattern, shirt]).astype(jnp.int32)
