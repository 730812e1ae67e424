"""Scores as pure functions: one value per picture or per person, on arrays that somebody else made.

Pixels are in [0, 1]; embeddings are a recogniser's, of any length.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pidiff_jax.arrays import area_resize


def identity_similarity(
    embeddings: Float[np.ndarray, "n d"], references: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n"]:
    """Cosine between each picture and its person's reference, in [-1, 1]."""
    return (_unit(embeddings) * _unit(references)).sum(-1)


def retrieval_top1(
    embeddings: Float[np.ndarray, "n d"], gallery: Float[np.ndarray, "g d"], person: Int[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Whether the nearest of the gallery's faces is the right one; `person` is each picture's index in the gallery."""
    nearest = (_unit(embeddings) @ _unit(gallery).T).argmax(-1)
    return nearest == person


def prompt_accuracy(predicted: Int[np.ndarray, "n a"], asked: Int[np.ndarray, "n a"]) -> Float[np.ndarray, "n a"]:
    """1 where a classifier sees in the picture what the prompt asked for, by attribute; average over the last axis."""
    return (np.asarray(predicted) == np.asarray(asked)).astype(np.float64)


def attention_in_face(
    attention: Float[np.ndarray, "n h w"], face_mask: Float[np.ndarray, "n _h _w"]
) -> Float[np.ndarray, "n"]:
    """The share of each map's mass that lies in the face mask, in [0, 1]; map and mask may differ in size.

    A map of zeros has nothing in the face: 0.
    """
    strength = np.asarray(attention, np.float64)
    inside = np.asarray(area_resize(jnp.asarray(face_mask, jnp.float32), strength.shape[1:]), np.float64)
    # The mask's resizing is exact to single precision only, so that its ones may come out a little larger.
    share = (strength * inside).sum((1, 2)) / np.maximum(strength.sum((1, 2)), 1e-12)
    return np.minimum(share, 1.0)


def background_change(
    pixels: Float[np.ndarray, "n h w c"],
    other_pixels: Float[np.ndarray, "n h w c"],
    face_mask: Float[np.ndarray, "n _h _w"],
) -> Float[np.ndarray, "n"]:
    """Mean absolute difference of two pictures outside the face, in [0, 1]; 0 where the face fills the picture.

    `face_mask` should cover the face in both pictures.
    """
    outside = 1.0 - np.asarray(area_resize(jnp.asarray(face_mask, jnp.float32), pixels.shape[1:3]))
    difference = np.abs(pixels - other_pixels).mean(-1)
    return (difference * outside).sum((1, 2)) / np.maximum(outside.sum((1, 2)), 1e-6)


def pixel_diversity(pixels: Float[np.ndarray, "n s h w c"]) -> Float[np.ndarray, "n"]:
    """Mean absolute difference between a person's pictures of different seeds, over all pairs, in [0, 1]."""
    return _mean_over_pairs(pixels, lambda a, b: np.abs(a - b).mean((1, 2, 3)))


def embedding_diversity(embeddings: Float[np.ndarray, "n s d"]) -> Float[np.ndarray, "n"]:
    """Mean of (1 - cosine) / 2 between a person's pictures of different seeds, over all pairs, in [0, 1]."""
    return _mean_over_pairs(_unit(embeddings), lambda a, b: (1.0 - (a * b).sum(-1)) / 2.0)


def frechet_distance(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
    """How far two sets of pictures are from each other: the Fréchet distance of Gaussians fitted to their features.

    0 for equal means and covariances. It is an FID only with Inception's features; with fewer pictures it is larger, so
    compare equal numbers.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    (mean, covariance), (other_mean, other_covariance) = (
        (x.mean(0), np.cov(x, rowvar=False)) for x in (np.asarray(features, np.float64), np.asarray(others, np.float64))
    )
    # The trace of the root of A B is that of the root of the symmetric A^1/2 B A^1/2.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0.0)).sum()
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2.0 * shared
    return float(max(distance, 0.0))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)


def _mean_over_pairs(values: np.ndarray, distance) -> np.ndarray:
    num_seeds = values.shape[1]
    if num_seeds < 2:
        raise ValueError(f"expected pictures of at least 2 seeds to compare, got {num_seeds}; draw more")
    pairs = [(i, j) for i in range(num_seeds) for j in range(i)]
    return np.mean([distance(values[:, i], values[:, j]) for i, j in pairs], axis=0)
