"""Bootstrap intervals cover the true mean as often as they say."""

import numpy as np
import pytest

from pidiff_jax.evaluation.bootstrap import bootstrap_mean


def test_intervals_cover_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        interval = bootstrap_mean(rng.exponential(1.0, 100), num_resamples=400)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.98


def test_intervals_agree_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.5, 0.1, 100)
    interval = bootstrap_mean(values)
    half_width = 1.96 * values.std() / 10
    np.testing.assert_allclose(
        [interval.low, interval.high], values.mean() + np.array([-half_width, half_width]), atol=0.002
    )
    assert interval.mean == pytest.approx(values.mean())


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(2).random(30)
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_equal_values_give_a_point():
    assert bootstrap_mean(np.array([True, True, True])) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("values", [np.zeros(0), np.array([0.5, np.nan])])
def test_nothing_and_nan_are_refused(values):
    with pytest.raises(ValueError, match="at least one value, all finite"):
        bootstrap_mean(values)
