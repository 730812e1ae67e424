"""The IR-SE backbone and ArcFace give the numbers of PyTorch, and read and write the published names."""

from functools import partial

import jax
import numpy as np
import pytest
import torch

from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.ir_se import (
    arcface_from_pytorch,
    arcface_table,
    arcface_to_pytorch,
    load_arcface_checkpoint,
)
from pidiff_jax.models import ir_se
from pidiff_jax.models.arcface import ArcFace, ArcFaceSpec
from pidiff_jax.models.ir_se import IRSE, IRSESpec
from pidiff_jax.worlds.portraits.networks import RECOGNISER, SCENES
from tests.parity import torch_faces as reference
from tests.parity.torch_faces import assert_agrees, channels_first, channels_last

# Reduction 4 keeps the squeezed width above 1; equal widths of two groups give a strided shortcut without weights.
SPEC = ArcFaceSpec(
    backbone=IRSESpec(units=(1, 2, 1), widths=(8, 8, 12), se_reduction=4), embedding_dim=10, input_size=24
)


@pytest.fixture(scope="module")
def model():
    return reference.randomised(lambda: reference.ArcFace(SPEC))


@pytest.fixture(scope="module")
def params(model):
    return arcface_from_pytorch(SPEC, reference.state(model))


def pictures(seed: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 24, 24, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("path", "module", "width"),
    [
        ("input_layer_1", ir_se.BatchNorm(), 8),
        ("input_layer_2", ir_se.PReLU(), 8),
        ("body_0/res_layer_5", ir_se.SqueezeExcite(4), 8),
        ("body_0", ir_se.BottleneckIRSE(8, 2, 4), 8),
        ("body_2", ir_se.BottleneckIRSE(8, 1, 4), 8),
        ("body_3", ir_se.BottleneckIRSE(12, 2, 4), 8),
    ],
)
def test_layers_match_pytorch(model, params, path, module, width):
    tree, name = params["backbone"], path
    for part in path.split("/"):
        tree = tree[part]
        name = name.replace(part, ".".join(part.rsplit("_", 1)))
    # Odd sides: a strided layer must start at the first pixel.
    x = np.random.default_rng(1).standard_normal((2, 7, 5, width)).astype(np.float32)
    with torch.no_grad():
        expected = channels_last(model.get_submodule(name.replace("/", "."))(channels_first(x)))
    assert_agrees(jax.jit(module.apply)({"params": tree}, x), expected, 1e-5)


def test_features_of_every_group_match_pytorch(model, params):
    pixels = pictures(2)
    with torch.no_grad():
        expected = model.features(channels_first(pixels))
    features = jax.jit(IRSE(SPEC.backbone).apply)({"params": params["backbone"]}, pixels)
    assert [x.shape[1] for x in features] == [12, 6, 3]
    for ours, theirs in zip(features, expected, strict=True):
        assert_agrees(ours, channels_last(theirs))


def test_embeddings_match_pytorch_and_have_unit_length(model, params):
    pixels = pictures(3, batch=3)
    with torch.no_grad():
        expected = model(channels_first(pixels))
        logits = model.output_layer(model.features(channels_first(pixels))[-1])
    embeddings = jax.jit(ArcFace(SPEC).apply)({"params": params}, pixels)
    assert_agrees(embeddings, expected)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1.0, rtol=1e-5)
    ours = jax.jit(partial(ArcFace(SPEC).apply, method="logits"))({"params": params}, pixels)
    assert_agrees(ours, logits)


def test_full_size_names_and_shapes_are_those_of_the_published_file():
    table = reference.foreign_shapes(arcface_table(ArcFaceSpec()))
    published = reference.described(lambda: reference.ArcFace(ArcFaceSpec()))
    assert table == {name: shape for name, shape in published.items() if not name.endswith("num_batches_tracked")}
    # Stem 6, 24 units of 13, 3 shortcuts of 5, output layer 10.
    assert len(table) == 6 + 24 * 13 + 3 * 5 + 10
    assert table["input_layer.0.weight"] == (64, 3, 3, 3)
    assert table["input_layer.2.weight"] == (64,)
    assert table["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
    assert table["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
    assert table["body.23.res_layer.4.running_var"] == (512,)
    assert table["output_layer.3.weight"] == (512, 512 * 7 * 7)


def test_there_and_back_is_bit_exact(model, params):
    tensors = reference.state(model)
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert counters
    back = arcface_to_pytorch(SPEC, params)
    assert back.keys() == tensors.keys() - counters
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_embedded_networks_have_tables_too():
    assert "output_layer.4.weight" in {entry.foreign for entry in arcface_table(RECOGNISER)}
    pooled = {entry.foreign for entry in arcface_table(SCENES)}
    assert "output_layer.3.weight" in pooled and "output_layer.4.weight" not in pooled


def test_files_are_read_and_misfits_named(tmp_path, model, params):
    torch.save(model.state_dict(), tmp_path / "recogniser.pth")
    write_safetensors(tmp_path / "recogniser.safetensors", reference.state(model))
    for name in ("recogniser.pth", "recogniser.safetensors"):
        jax.tree.map(np.testing.assert_array_equal, load_arcface_checkpoint(tmp_path / name, SPEC), params)
    broken = reference.state(model) | {"body.9.surprise": np.zeros(3)}
    del broken["body.0.res_layer.2.weight"]
    with pytest.raises(ValueError, match=r"missing 'body\.0\.res_layer\.2\.weight'.*unknown 'body\.9\.surprise'"):
        arcface_from_pytorch(SPEC, broken)
