"""Partial initialisation takes what is there, keeps only what may stay fresh, and names the differences."""

import jax
import numpy as np
import pytest

from pidiff_jax.checkpoint.initialise import initialise_from

FRESH = {"unet": {"to_k": np.zeros((2, 3), np.float32), "to_k_id": np.full((2, 3), 7, np.float32)}}


def test_values_come_from_the_source_in_our_dtype():
    source = {"unet": {"to_k": np.ones((2, 3), np.float16)}}
    tree = initialise_from(FRESH, source, allow_missing=r"_id$")
    assert tree["unet"]["to_k"].dtype == np.float32
    np.testing.assert_array_equal(tree["unet"]["to_k"], 1)
    assert tree["unet"]["to_k_id"] is FRESH["unet"]["to_k_id"]


def test_differences_are_named_in_one_line():
    source = {"unet": {"to_k": np.ones((3, 2)), "to_q": np.ones(4)}}
    with pytest.raises(ValueError, match="got 3 differences") as error:
        initialise_from(FRESH, source)
    for problem in (
        "unet/to_k: expected shape (2, 3), got (3, 2)",
        "unet/to_k_id: missing in the source",
        "unet/to_q: of shape (4,) in the source only",
    ):
        assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_unused_parameters_of_the_source_need_permission():
    source = {**FRESH, "text": {"position_ids": np.ones(4)}}
    assert set(initialise_from(FRESH, source, allow_unused="position_ids$")) == {"unet"}


def test_a_shape_has_no_fresh_value_to_keep():
    shapes = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(ValueError, match="no fresh value to keep"):
        initialise_from(shapes, {}, allow_missing="a")
