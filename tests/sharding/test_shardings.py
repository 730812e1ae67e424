"""Parameters lie where the table says, dimensions that can't be split are replicated, batches are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from pidiff_jax.models.layers import Conv, Dense
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import batch_structs, infer_shardings, place, scatter, shard_batch

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def boxed(module, *shape):
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]


def specs(tree, **options):
    shardings = infer_shardings(tree, make_mesh(MESH), **{"min_elements": 0, **options})
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_a_mesh_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"got \('data',\) without fsdp, tensor; make it with .*make_mesh"):
        infer_shardings(boxed(Dense(16, axes=("embed", "heads")), 1, 8), jax.make_mesh((8,), ("data",)))


def test_logical_axes_become_mesh_axes():
    assert specs(boxed(Dense(16, axes=("embed", "heads")), 1, 8)) == {
        "kernel": P("fsdp", "tensor"),
        "bias": P("tensor"),
    }
    assert specs(boxed(Conv(8), 1, 4, 4, 2))["kernel"] == P(None, None, None, "fsdp")


def test_a_dimension_that_the_mesh_does_not_divide_is_replicated():
    assert specs(boxed(Dense(7, axes=("embed", "heads")), 1, 8))["kernel"] == P("fsdp", None)


def test_two_dimensions_do_not_share_a_mesh_axis():
    assert specs(boxed(Dense(8, axes=("embed", "embed")), 1, 8))["kernel"] == P("fsdp", None)


def test_a_later_rule_of_the_same_axis_is_the_second_choice():
    rules = (("embed", "fsdp"), ("heads", "fsdp"), ("heads", "tensor"))
    assert specs(boxed(Dense(8, axes=("embed", "heads")), 1, 8), rules=rules)["kernel"] == P("fsdp", "tensor")


def test_small_and_unnamed_parameters_are_replicated():
    assert specs(boxed(Dense(16), 1, 8), min_elements=1000) == {"kernel": P(), "bias": P()}
    assert specs({"latent_avg": jax.ShapeDtypeStruct((8, 8), jnp.float32)}) == {"latent_avg": P()}


def test_an_unknown_logical_axis_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"got 'experts' at (bias|kernel); add it to the sharding rules"):
        specs(boxed(Dense(8, axes=("embed", "experts")), 1, 8))


def test_placing_parameters_splits_them_and_converts_only_floats():
    tree = boxed(Dense(16), 1, 8)
    values = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), nn.unbox(tree))
    placed = place(values, infer_shardings(tree, make_mesh(MESH), min_elements=0), jnp.bfloat16)
    assert placed["kernel"].dtype == jnp.bfloat16
    assert placed["kernel"].addressable_shards[0].data.shape == (4, 8)


def test_the_batch_is_split_over_data_and_fsdp():
    mesh = make_mesh(MESH)
    batch = {"latent_mean": np.arange(24.0, dtype=np.float32).reshape(8, 3), "person_id": np.arange(8, dtype=np.int32)}
    sharded = shard_batch(batch, mesh)
    assert sharded["latent_mean"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(sharded["person_id"], batch["person_id"])
    struct = batch_structs(batch, mesh)["latent_mean"]
    assert (struct.shape, struct.sharding) == ((8, 3), sharded["latent_mean"].sharding)


def test_a_batch_that_can_not_be_split_evenly_is_an_error():
    with pytest.raises(ValueError, match=r"divisible by data\*fsdp=4, got 6 for 'wplus'"):
        shard_batch({"wplus": np.zeros((6, 2), np.float32)}, make_mesh(MESH))


@pytest.mark.parametrize(("size", "share"), [(8, 2), (6, 6)])
def test_what_every_process_has_whole_is_split_where_that_is_even(size, share):
    whole = np.arange(3.0 * size, dtype=np.float32).reshape(size, 3)
    scattered = scatter(whole, make_mesh(MESH))
    assert {shard.data.shape for shard in scattered.addressable_shards} == {(share, 3)}
    np.testing.assert_array_equal(scattered, whole)
