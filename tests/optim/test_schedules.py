"""Warmup, plateau and decay at the steps where they should be."""

import numpy as np
import pytest

from pidiff_jax.optim.schedules import make_schedule


def test_the_warmup_rises_linearly_to_the_peak():
    schedule = make_schedule("constant", 0.4, num_steps=10, warmup_steps=4)
    np.testing.assert_allclose([schedule(s) for s in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_linear_decay_takes_the_last_fraction_of_the_run():
    schedule = make_schedule("linear", 1.0, num_steps=10, decay_fraction=0.4)
    np.testing.assert_allclose([schedule(s) for s in (0, 6, 7, 8, 10, 12)], [1, 1, 0.75, 0.5, 0, 0], atol=1e-6)


def test_cosine_decay_ends_at_the_end_factor():
    schedule = make_schedule("cosine", 2.0, num_steps=100, warmup_steps=20, end_factor=0.1)
    np.testing.assert_allclose([schedule(s) for s in (20, 60, 100)], [2.0, 1.1, 0.2], rtol=1e-5)


def test_the_decay_is_where_the_clock_wants_it_and_never_behind_the_steps():
    schedule = make_schedule("linear", 1.0, num_steps=10, decay_fraction=0.4)
    due = [schedule(4, due_step) for due_step in (0.0, 3.0, 7.0, 8.5, 10.0)]
    np.testing.assert_allclose(due, [1, 1, 0.75, 0.375, 0], atol=1e-6)
    assert schedule(9, 2.0) == schedule(9)


def test_the_clock_does_not_shorten_the_warmup():
    schedule = make_schedule("linear", 1.0, num_steps=10, warmup_steps=4)
    np.testing.assert_allclose([schedule(0, 7.0), schedule(3, 7.0)], [0.25 * 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "expected a schedule of .* got 'cosin'"),
        ({"warmup_steps": 11}, r"warmup_steps in \[0, num_steps=10\], got 11"),
        ({"decay_fraction": 0.0}, r"decay_fraction in \(0, 1\], got 0.0"),
    ],
)
def test_values_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**{"name": "cosine", "peak": 1.0, "num_steps": 10, **arguments})
