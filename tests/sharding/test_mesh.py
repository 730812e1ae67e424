"""A mesh from named sizes, and clear errors for sizes that don't fit."""

import jax
import pytest

from pidiff_jax.sharding.mesh import make_mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (None, (8, 1, 1)),
        ({"data": -1, "tensor": 2}, (4, 1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"fsdp": -1}, (1, 8, 1)),
    ],
)
def test_minus_one_takes_what_the_others_leave(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape


def test_a_mesh_can_use_some_of_the_devices():
    assert make_mesh({"data": -1}, jax.devices()[:3]).devices.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, r"multiply to the 8 devices, got data=3, fsdp=1, tensor=1 \(product 3\)"),
        ({"data": 4}, r"multiply to the 8 devices.*product 4"),
        ({"data": -1, "tensor": 3}, "multiply to the 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": 0}, "positive mesh sizes"),
        ({"model": 2}, r"got \['model'\]"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(sizes)
