"""Scores of made-up pictures whose right scores are known."""

import numpy as np
import pytest

from pidiff_jax.evaluation import scores


def embeddings(n=6, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def left_mask(n=2, size=8):
    mask = np.zeros((n, size, size), np.float32)
    mask[:, :, : size // 2] = 1.0
    return mask


def test_similarity_is_one_to_oneself_and_ignores_length():
    a = embeddings()
    np.testing.assert_allclose(scores.identity_similarity(3 * a, a), 1.0, rtol=1e-6)
    np.testing.assert_allclose(scores.identity_similarity(-a, a), -1.0, rtol=1e-6)


def test_retrieval_finds_the_nearest_face():
    gallery = embeddings()
    person = np.array([2, 0, 5])
    noisy = gallery[person] + 0.01
    np.testing.assert_array_equal(scores.retrieval_top1(noisy, gallery, person), True)
    np.testing.assert_array_equal(scores.retrieval_top1(noisy, gallery, person - 1), False)


def test_prompt_accuracy_is_per_attribute():
    asked = np.array([[1, 2, 3], [4, 5, 6]])
    seen = np.array([[1, 0, 3], [4, 5, 0]])
    np.testing.assert_array_equal(scores.prompt_accuracy(seen, asked), [[1, 0, 1], [1, 1, 0]])


def test_attention_in_face_counts_mass_at_any_resolution():
    attention = np.ones((2, 4, 4), np.float32)
    np.testing.assert_allclose(scores.attention_in_face(attention, left_mask()), 0.5, rtol=1e-6)
    attention[:, :, 2:] = 0.0
    np.testing.assert_allclose(scores.attention_in_face(attention, left_mask()), 1.0, rtol=1e-6)


def test_a_map_without_attention_has_none_in_the_face():
    np.testing.assert_array_equal(scores.attention_in_face(np.zeros((2, 4, 4), np.float32), left_mask()), 0.0)


def test_background_change_ignores_the_face():
    picture = np.full((2, 8, 8, 3), 0.2, np.float32)
    changed = picture + 0.5 * left_mask()[..., None]
    np.testing.assert_allclose(scores.background_change(changed, picture, left_mask()), 0.0, atol=1e-6)
    np.testing.assert_allclose(scores.background_change(changed, picture, 1 - left_mask()), 0.5, rtol=1e-5)
    np.testing.assert_allclose(scores.background_change(changed, picture, np.ones_like(left_mask())), 0.0)


def test_diversity_is_the_mean_distance_over_pairs():
    pixels = np.zeros((1, 3, 4, 4, 3), np.float32)
    pixels[:, 1], pixels[:, 2] = 0.3, 0.9
    np.testing.assert_allclose(scores.pixel_diversity(pixels), (0.3 + 0.9 + 0.6) / 3, rtol=1e-5)
    same = np.repeat(embeddings(1)[:, None], 3, axis=1)
    np.testing.assert_allclose(scores.embedding_diversity(same), 0.0, atol=1e-6)
    opposite = np.concatenate([same[:, :1], -same[:, :1]], axis=1)
    np.testing.assert_allclose(scores.embedding_diversity(opposite), 1.0, rtol=1e-6)


def test_one_seed_has_no_diversity():
    with pytest.raises(ValueError, match="at least 2 seeds"):
        scores.pixel_diversity(np.zeros((1, 1, 4, 4, 3), np.float32))


def test_the_frechet_distance_is_that_of_two_gaussians():
    """Their samples are made to have exactly the means and covariances that the closed form is known for."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    first, other = x * [1.0, 2.0, 0.5] @ rotation, (x * [3.0, 2.0, 1.0] + [1.0, 0.0, -2.0]) @ rotation
    assert scores.frechet_distance(first, other) == pytest.approx(4.0 + 0.25 + 5.0)
    assert scores.frechet_distance(other, first) == pytest.approx(4.0 + 0.25 + 5.0)
    assert scores.frechet_distance(first, first[::-1]) == pytest.approx(0.0, abs=1e-6)
