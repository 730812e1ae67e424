"""Levels name layers of W+, and mixing them lies between two codes."""

import numpy as np
import pytest

from pidiff_jax.editing.levels import LEVELS, interpolate, layers_of, level_spans, mix, per_layer


def pair():
    return np.random.default_rng(0).standard_normal((2, 18, 6)).astype(np.float32)


def test_mixing_all_levels_gives_the_other_code_and_mixing_none_changes_nothing():
    a, b = pair()
    for levels in ("all", list(LEVELS), "coarse,middle,fine", "0-17"):
        np.testing.assert_array_equal(mix(a, b, levels), b)
    np.testing.assert_array_equal(mix(a, b, []), a)
    np.testing.assert_array_equal(mix(a, b, "all", 0.0), a)


def test_a_level_takes_its_own_layers_alone_and_leaves_its_inputs():
    a, b = pair()
    before = a.copy(), b.copy()
    mixed = mix(a, b, "middle")
    np.testing.assert_array_equal(mixed[4:8], b[4:8])
    np.testing.assert_array_equal(np.delete(mixed, range(4, 8), 0), np.delete(a, range(4, 8), 0))
    np.testing.assert_allclose(mix(a, b, "middle", 0.25)[4:8], 0.75 * a[4:8] + 0.25 * b[4:8], atol=1e-6)
    np.testing.assert_array_equal((a, b), before)


def test_levels_cover_every_layer_once_whatever_their_number():
    assert level_spans(18) == {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 18)}
    for count in (1, 4, 6, 10, 14, 18):
        assert [layer for level in LEVELS for layer in layers_of(level, count)] == list(range(count))


@pytest.mark.parametrize(
    ("levels", "layers"),
    [("coarse", [0, 1, 2, 3]), ("2-5", [2, 3, 4, 5]), ("7", [7]), (7, [7]), ("9-9", [9]), (["7", "6-7", 1], [1, 6, 7]),
     ("1, 3-4", [1, 3, 4]), ([], [])],
)  # fmt: skip
def test_layers_are_named_by_levels_numbers_ranges_and_lists(levels, layers):
    assert layers_of(levels, 10) == layers


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("corse", "expected levels of coarse, middle, fine, all, or layers such as 3 or 2-5, got 'corse'"),
        ("coarse,corse", "got 'corse'"),
        ("", "got ''"),
        ("2-", "got '2-'"),
        ("5-2", "expected layers of 0 to 9, got 5-2"),
        ("8-10", "expected layers of 0 to 9, got 8-10"),
        (10, "expected layers of 0 to 9, got 10"),
        (-1, "expected levels of|expected layers of"),
    ],
)
def test_levels_that_there_are_not_are_refused_in_one_line(levels, message):
    with pytest.raises(ValueError, match=message) as error:
        layers_of(levels, 10)
    assert "\n" not in str(error.value)


def test_interpolation_is_even_and_includes_both_ends():
    a, b = pair()
    way = interpolate(a, b, 5)
    np.testing.assert_array_equal(way[[0, -1]], (a, b))
    np.testing.assert_allclose(np.diff(way, axis=0), np.broadcast_to((b - a) / 4, (4, *a.shape)), atol=1e-6)


def test_codes_of_two_encoders_are_not_mixed():
    a, b = pair()
    for function in (lambda: mix(a, b[:10], "all"), lambda: interpolate(a, b[:, :5], 3)):
        with pytest.raises(ValueError, match="expected codes of one shape, got"):
            function()


def test_a_number_for_each_layer_comes_from_one_from_each_or_from_levels():
    np.testing.assert_array_equal(per_layer(0.5, 10), np.full(10, 0.5))
    np.testing.assert_array_equal(per_layer([float(i) for i in range(10)], 10), np.arange(10))
    np.testing.assert_array_equal(per_layer({"coarse": 0.0, "9": 2.0}, 10), [0] * 4 + [1] * 5 + [2])
    with pytest.raises(ValueError, match=r"one for each of 10 layers, got \(3,\)"):
        per_layer([1.0, 2.0, 3.0], 10)
    with pytest.raises(ValueError, match="got 'rough'"):
        per_layer({"rough": 1.0}, 10)
