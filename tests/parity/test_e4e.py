"""The e4e encoder gives the numbers of PyTorch, and reads and writes checkpoints of encoder4editing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.ir_se import e4e_from_pytorch, e4e_table, e4e_to_pytorch, load_e4e_checkpoint
from pidiff_jax.models import e4e
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.worlds.portraits.networks import ENCODER
from tests.parity import torch_faces as reference
from tests.parity.torch_faces import assert_agrees, channels_first, channels_last

SPEC = E4eSpec(
    backbone=IRSESpec(units=(1, 2, 1, 1), widths=(8, 8, 12, 16), se_reduction=4),
    num_layers=6,
    wplus_dim=16,
    input_size=32,
    coarse_index=2,
    middle_index=4,
    style_width=16,
)


@pytest.fixture(scope="module")
def model():
    return reference.randomised(lambda: reference.E4e(SPEC))


@pytest.fixture(scope="module")
def params(model):
    return e4e_from_pytorch(SPEC, reference.state(model, "encoder."))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def test_codes_match_pytorch(model, params, pixels):
    with torch.no_grad():
        expected = model(channels_first(pixels))
    codes = jax.jit(E4eEncoder(SPEC).apply)({"params": params}, pixels)
    assert codes.shape == (2, 6, 16)
    assert_agrees(codes, expected)
    assert_agrees(codes[:, 1:] - codes[:, :1], expected[:, 1:] - expected[:, :1])
    average = np.random.default_rng(1).standard_normal((6, 16)).astype(np.float32)
    wplus = jax.jit(e4e.encode_wplus, static_argnums=0)(E4eEncoder(SPEC), params, average, pixels)
    assert_agrees(wplus, expected + torch.tensor(average))


def test_codes_match_pytorch_at_sizes_that_are_no_power_of_two():
    spec = dataclasses.replace(SPEC, input_size=48)
    model = reference.randomised(lambda: reference.E4e(spec))
    pixels = np.random.default_rng(6).uniform(-1, 1, (1, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(channels_first(pixels))
    params = e4e_from_pytorch(spec, reference.state(model, "encoder."))
    assert_agrees(jax.jit(E4eEncoder(spec).apply)({"params": params}, pixels), expected)


@pytest.mark.parametrize(("height", "width", "size"), [(2, 2, 4), (3, 5, 9), (16, 16, 32)])
def test_upsampling_keeps_corners_as_pytorch_does(height, width, size):
    x = np.random.default_rng(2).standard_normal((2, height, width, 3)).astype(np.float32)
    expected = F.interpolate(channels_first(x), size=(size, size), mode="bilinear", align_corners=True)
    assert_agrees(e4e.upsample_aligned(jnp.asarray(x), size), channels_last(expected), 1e-5)


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
def test_equalised_linear_layer_matches_pytorch(multiplier):
    layer = reference.EqualLinear(6, 5, multiplier)
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    tree = {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
    assert_agrees(e4e.EqualLinear(5, multiplier).apply({"params": tree}, jnp.asarray(x)), layer(torch.tensor(x)), 1e-5)


def test_full_size_names_and_shapes_are_those_of_the_published_file():
    spec = E4eSpec()
    table = reference.foreign_shapes(e4e_table(spec))
    published = reference.described(lambda: reference.E4e(spec))
    published = {f"encoder.{name}": shape for name, shape in published.items()}
    assert table == {name: shape for name, shape in published.items() if not name.endswith("num_batches_tracked")}
    # Stem 6, 24 units of 13, 3 shortcuts of 5; 18 heads of 4, 5 or 6 convolutions and a linear layer; 2 laterals.
    assert len(table) == 6 + 24 * 13 + 3 * 5 + 2 * (3 * 5 + 4 * 6 + 11 * 7) + 2 * 2
    assert {int(name.split(".")[2]) for name in table if ".shortcut_layer." in name} == {3, 7, 21}
    assert sorted({name for name in table if name.startswith("encoder.styles.17.") and name.endswith("weight")}) == [
        "encoder.styles.17.convs.0.weight",
        "encoder.styles.17.convs.10.weight",
        "encoder.styles.17.convs.2.weight",
        "encoder.styles.17.convs.4.weight",
        "encoder.styles.17.convs.6.weight",
        "encoder.styles.17.convs.8.weight",
        "encoder.styles.17.linear.weight",
    ]
    assert table["encoder.latlayer1.weight"] == (512, 256, 1, 1)
    assert table["encoder.latlayer2.weight"] == (512, 128, 1, 1)
    assert table["encoder.body.7.shortcut_layer.0.weight"] == (256, 128, 1, 1)
    assert table["encoder.body.21.res_layer.1.weight"] == (512, 256, 3, 3)
    assert table["encoder.styles.0.convs.0.weight"] == (512, 512, 3, 3)
    assert table["encoder.styles.0.linear.weight"] == (512, 512)


def test_there_and_back_is_bit_exact(model, params):
    tensors = reference.state(model, "encoder.")
    back = e4e_to_pytorch(SPEC, params)
    assert back.keys() == {name for name in tensors if not name.endswith("num_batches_tracked")}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_the_embedded_encoder_goes_there_and_back():
    rng = np.random.default_rng(4)
    table = e4e_table(ENCODER)
    foreign = {entry.foreign: entry.layout.to_foreign(rng.standard_normal(entry.shape)) for entry in table}
    back = e4e_to_pytorch(ENCODER, e4e_from_pytorch(ENCODER, foreign))
    for name, tensor in foreign.items():
        np.testing.assert_array_equal(back[name], tensor)


def save_checkpoint(path, model, latent_avg, **more):
    encoder = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    decoder = {"decoder.input.input": torch.zeros(1, 4, 4, 4)}
    content = {"state_dict": encoder | decoder, "latent_avg": latent_avg, "opts": {"lr": 1e-4, "exp_dir": "here"}}
    torch.save(content | more, path)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (6, 16), (1, 6, 16)])
def test_checkpoints_give_parameters_and_an_average_code_per_layer(tmp_path, model, params, shape):
    average = torch.randn(shape, dtype=torch.float64)
    save_checkpoint(tmp_path / "e4e.pt", model, average, discriminator_state_dict={"fc.weight": torch.zeros(2)})
    loaded, rows = load_e4e_checkpoint(tmp_path / "e4e.pt", SPEC)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.broadcast_to(average.reshape(-1, 16).float().numpy(), (6, 16)))


def test_safetensors_are_read_like_checkpoints(tmp_path, model, params):
    average = np.random.default_rng(5).standard_normal((6, 16)).astype(np.float32)
    write_safetensors(tmp_path / "e4e.safetensors", reference.state(model, "encoder.") | {"latent_avg": average})
    loaded, rows = load_e4e_checkpoint(tmp_path / "e4e.safetensors", SPEC)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_array_equal(rows, average)


def test_what_does_not_fit_is_named(tmp_path, model):
    save_checkpoint(tmp_path / "other_width.pt", model, torch.zeros(6, 12))
    with pytest.raises(ValueError, match=r"latent_avg of shape .*got \(6, 12\)"):
        load_e4e_checkpoint(tmp_path / "other_width.pt", SPEC)
    torch.save({"latent_avg": torch.zeros(16)}, tmp_path / "no_encoder.pt")
    with pytest.raises(ValueError, match=r"no name that starts with 'encoder\.'"):
        load_e4e_checkpoint(tmp_path / "no_encoder.pt", SPEC)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, tmp_path / "no_average.pt")
    with pytest.raises(ValueError, match="no latent_avg"):
        load_e4e_checkpoint(tmp_path / "no_average.pt", SPEC)
    broken = reference.state(model, "encoder.") | {"encoder.surprise": np.zeros(3)}
    name = "encoder.styles.0.linear.weight"
    broken[name] = broken[name][:-1]
    with pytest.raises(ValueError, match="surprise") as error:
        e4e_from_pytorch(SPEC, broken)
    assert f"{name!r}: expected shape (16, 16), got (15, 16)" in str(error.value)
