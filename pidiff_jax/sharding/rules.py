"""Where arrays lie on the mesh: logical axis names of parameters -> mesh axes; batches over `data` and `fsdp`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.sharding.mesh import MESH_AXES

# (logical axis, mesh axis); None replicates. A logical axis may come several times: the first mesh axis that divides the
# dimension and isn't taken by another dimension of the same array wins. Convolutions aren't split over `tensor`: their
# outputs meet a normalisation over channels next, which would gather them again.
AxisRules = Sequence[tuple[str, str | None]]
DEFAULT_RULES: AxisRules = (
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("conv_in", None),
    ("conv_out", "fsdp"),
    ("norm", None),
)
BATCH_AXES = ("data", "fsdp")


def infer_shardings(
    boxed: Mapping[str, Any], mesh: Mesh, rules: AxisRules = DEFAULT_RULES, *, min_elements: int = 4096
) -> dict[str, Any]:
    """Returns the sharding of every parameter, in a tree with the paths of `boxed`.

    Args:
        boxed: parameters as `Module.init` or its `jax.eval_shape` returns them, with their logical axis names. A leaf
            without names is replicated.
        mesh: from `mesh.make_mesh`.
        rules: logical axis -> mesh axis.
        min_elements: smaller arrays are replicated: gathering them costs more than holding them.

    A dimension that its mesh axis doesn't divide is replicated.

    Raises:
        ValueError: a logical axis has no rule, or the mesh has other axes than `make_mesh` gives it.
    """
    if missing := set(MESH_AXES) - set(mesh.axis_names):
        raise ValueError(
            f"expected a mesh with the axes {MESH_AXES}, got {mesh.axis_names} without {', '.join(sorted(missing))}; make it "
            "with pidiff_jax.sharding.mesh.make_mesh"
        )
    flat = flatten(boxed)
    table: dict[str, list[str | None]] = {}
    for logical, axis in rules:
        table.setdefault(logical, []).append(axis)
    specs = {path: _partition_spec(path, leaf, mesh, table, min_elements) for path, leaf in flat.items()}
    return unflatten({path: NamedSharding(mesh, spec) for path, spec in specs.items()})


def _partition_spec(
    path: str, leaf: Any, mesh: Mesh, table: Mapping[str, Sequence[str | None]], min_elements: int
) -> PartitionSpec:
    if not isinstance(leaf, nn.Partitioned):
        return PartitionSpec()
    shape, taken, axes = leaf.value.shape, set(), []
    for logical, size in zip(leaf.names, shape, strict=True):
        if logical is not None and logical not in table:
            raise ValueError(
                f"expected logical axes of {sorted(table)}, got {logical!r} at {path}; add it to the sharding rules"
            )
        usable = (a for a in table.get(logical, ()) if a and a not in taken and size % mesh.shape[a] == 0)
        axis = next(usable, None)
        taken.add(axis)
        axes.append(axis)
    return PartitionSpec() if np.prod(shape) < min_elements else PartitionSpec(*axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(tree: Any) -> Any:
    """Where the leaves of a tree lie: arrays, or shape structs with shardings."""
    return jax.tree.map(lambda x: x.sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the batch of this process; the global batch is the processes' batches one after another.

    Raises:
        ValueError: the global batch can't be split evenly over the devices of `data` and `fsdp`.
    """
    _check_batch(batch, mesh)
    sharding = batch_sharding(mesh)
    # A transfer that is meant, also under a guard: with several processes JAX takes it for one by chance.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for name, x in batch.items()}


def scatter(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """A global array of one that every process has whole: its leading axis is split like a batch's, where that is even."""
    count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    sharding = replicated(mesh) if len(array) % count else batch_sharding(mesh)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def batch_structs(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of the global batch, given the batch of one process (arrays or shape structs)."""
    _check_batch(batch, mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (x.shape[0] * jax.process_count(), *x.shape[1:]),
            jax.dtypes.canonicalize_dtype(x.dtype),
            sharding=batch_sharding(mesh),
        )
        for name, x in batch.items()
    }


def from_first_process(number: float, mesh: Mesh) -> jax.Array:
    """Makes a float32 scalar on all devices of what process 0 gives, at least 0; other processes' numbers don't count.

    No process waits for another: several let their devices agree.
    """
    if jax.process_count() == 1:
        return jax.device_put(np.float32(number), replicated(mesh))
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    own = np.full(1, number if jax.process_index() == 0 else 0.0, np.float32)
    with jax.transfer_guard_host_to_device("allow"):  # as in `shard_batch`
        return _largest(mesh)(jax.make_array_from_callback((mesh.size,), sharding, lambda _: own))


@functools.cache
def _largest(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jax.numpy.max, out_shardings=replicated(mesh))


def place(tree: Any, shardings: Any, dtype: Any = None) -> Any:
    """Puts host arrays (the same in every process) on the mesh; `dtype` converts floating-point leaves, None keeps them."""

    def place_leaf(x: Any, sharding: NamedSharding) -> jax.Array:
        if dtype is not None and jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
            x = x.astype(dtype)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place_leaf, tree, shardings)


def _check_batch(batch: Mapping[str, Any], mesh: Mesh) -> None:
    num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    for name, x in batch.items():
        size = x.shape[0] * jax.process_count()
        if size % num_shards:
            raise ValueError(
                f"expected a global batch size divisible by data*fsdp={num_shards}, got {size} for {name!r}; "
                "change the batch size or the mesh"
            )
