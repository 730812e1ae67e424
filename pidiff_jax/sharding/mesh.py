"""The device mesh: named axes, `data` and `fsdp` splitting the batch, `fsdp` and `tensor` splitting parameters."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

MESH_AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh over all devices (or `devices`) with the axes `data`, `fsdp`, `tensor`.

    Args:
        sizes: axis -> size; an axis left out has size 1, and one axis may be -1 to take what the others leave. None is
            the same as {"data": -1}.
        devices: None takes every device of every process.

    Raises:
        ValueError: an unknown axis, a size that is neither positive nor -1, two -1, or sizes whose product isn't the
            number of devices.
    """
    sizes = {"data": -1} if sizes is None else dict(sizes)
    devices = jax.devices() if devices is None else list(devices)
    unknown = sorted(sizes.keys() - set(MESH_AXES))
    if unknown:
        raise ValueError(f"expected mesh axes of {MESH_AXES}, got {unknown}; correct the mesh's axis names")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"expected positive mesh sizes and at most one -1, got {asked}; correct the mesh's sizes")
    known = math.prod(size for size in shape if size != -1)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise ValueError(
            f"expected mesh sizes that multiply to the {len(devices)} devices, got {asked} (product {known}); "
            "set one axis to -1 to let it take the devices that the others leave"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    # Auto: the compiler propagates shardings; Explicit, jax's default, would make them part of every array's type.
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
