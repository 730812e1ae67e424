"""StyleGAN2's networks give the numbers of PyTorch, and read and write the rosinality layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.stylegan2 import (
    load_stylegan2_checkpoint,
    stylegan2_from_pytorch,
    stylegan2_table,
    stylegan2_to_pytorch,
)
from pidiff_jax.models import stylegan2
from pidiff_jax.models.stylegan2 import Mapping, StyleGan2Spec, Synthesis
from pidiff_jax.worlds.portraits.networks import STYLEGAN2
from tests.parity import torch_faces as reference
from tests.parity.torch_faces import assert_agrees, channels_first, channels_last

SPEC = StyleGan2Spec(size=16, style_dim=12, num_mapping_layers=3, channels=(10, 8, 6))


@pytest.fixture(scope="module")
def model():
    return reference.randomised(lambda: reference.StyleGan2(SPEC))


@pytest.fixture(scope="module")
def weights(model):
    return stylegan2_from_pytorch(SPEC, reference.state(model))


def test_mapping_matches_pytorch(model, weights):
    z = 3.0 * np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
    with torch.no_grad():
        expected = model.style(torch.tensor(z))
    to_w = jax.jit(Mapping(SPEC).apply)
    assert_agrees(to_w({"params": weights.mapping}, z), expected)
    # Pixel norm: only the direction of z counts.
    assert_agrees(to_w({"params": weights.mapping}, 2.0 * z), expected)


@pytest.mark.parametrize("with_noise", [True, False])
def test_pictures_of_mixed_styles_match_pytorch(model, weights, with_noise):
    wplus = np.random.default_rng(1).standard_normal((2, 6, 12)).astype(np.float32)
    with torch.no_grad():
        expected = channels_last(model(torch.tensor(wplus), float(with_noise)))
    noise = weights.noise if with_noise else None
    pictures = jax.jit(Synthesis(SPEC).apply)({"params": weights.synthesis}, wplus, noise)
    assert pictures.shape == (2, 16, 16, 3)
    assert_agrees(pictures, expected)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolutions_match_pytorch(upsample, demodulate):
    torch.manual_seed(1)
    layer = reference.ModulatedConv(6, 5, 3, 4, demodulate, upsample)
    rng = np.random.default_rng(2)
    x, style = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 6, 6), (2, 4)))
    modulation = {
        "kernel": layer.modulation.weight.detach().numpy().T,
        "bias": layer.modulation.bias.detach().numpy(),
    }
    params = {"kernel": layer.weight[0].detach().numpy().transpose(2, 3, 1, 0), "modulation": modulation}
    ours = stylegan2.ModulatedConv(5, demodulate=demodulate, upsample=upsample)
    expected = channels_last(layer(channels_first(x), torch.tensor(style)))
    assert_agrees(jax.jit(ours.apply)({"params": params}, x, style), expected, 1e-5)


def test_filtered_upsampling_matches_pytorch():
    x = np.random.default_rng(3).standard_normal((2, 3, 5, 3)).astype(np.float32)
    expected = channels_last(reference.Filter(2, 1, spread=True)(channels_first(x)))
    assert_agrees(stylegan2.upsample_fir(jnp.asarray(x)), expected, 1e-5)


def test_full_size_names_and_shapes_are_those_of_the_published_generator():
    table = stylegan2_table(StyleGan2Spec())
    shapes = reference.foreign_shapes(table)
    published = reference.described(lambda: reference.StyleGan2(StyleGan2Spec()))
    assert shapes == {name: s for name, s in published.items() if "noises." not in name and "kernel" not in name}
    # 8 dense layers, a constant; 17 styled convolutions of 5 tensors; 9 of 4 to RGB.
    assert len(shapes) == 8 * 2 + 1 + 17 * 5 + 9 * 4
    assert sum(int(np.prod(entry.shape)) for entry in table) == 30_370_060
    assert shapes["input.input"] == (1, 512, 4, 4)
    assert shapes["conv1.conv.weight"] == (1, 512, 512, 3, 3)
    assert shapes["convs.15.conv.weight"] == (1, 32, 32, 3, 3)
    assert shapes["convs.15.activate.bias"] == (32,)
    assert shapes["convs.15.noise.weight"] == (1,)
    assert shapes["to_rgbs.7.conv.weight"] == (1, 3, 32, 1, 1)
    assert shapes["to_rgbs.7.conv.modulation.weight"] == (32, 512)
    assert shapes["to_rgbs.7.bias"] == (1, 3, 1, 1)


def test_there_and_back_is_bit_exact(model, weights):
    tensors = reference.state(model)
    back = stylegan2_to_pytorch(SPEC, weights.mapping, weights.synthesis, weights.noise)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    silent = stylegan2_to_pytorch(SPEC, weights.mapping, weights.synthesis)
    assert silent.keys() == {name for name in tensors if not name.startswith("noises.")}
    assert stylegan2_from_pytorch(SPEC, silent).noise is None


def test_the_embedded_generator_goes_there_and_back():
    rng = np.random.default_rng(4)
    table = stylegan2_table(STYLEGAN2)
    foreign = {entry.foreign: entry.layout.to_foreign(rng.standard_normal(entry.shape)) for entry in table}
    read = stylegan2_from_pytorch(STYLEGAN2, foreign)
    back = stylegan2_to_pytorch(STYLEGAN2, read.mapping, read.synthesis)
    for name, tensor in foreign.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize("home", ["g_ema", "e4e", "bare"])
def test_generators_are_found_in_the_files_that_hold_them(tmp_path, model, weights, home):
    state, average = model.state_dict(), torch.randn(12)
    other = {"discriminator": {"fc.weight": torch.zeros(2)}}
    decoder = {f"decoder.{name}": tensor for name, tensor in state.items()}
    content = {
        # Training files keep the generator that is trained beside its average.
        "g_ema": {"g_ema": state, "g": {name: 0 * x for name, x in state.items()}, "latent_avg": average} | other,
        "e4e": {"state_dict": decoder | {"encoder.x": torch.zeros(1)}, "latent_avg": average.repeat(6, 1)} | other,
        "bare": state,
    }[home]
    torch.save(content, tmp_path / "generator.pt")
    loaded = load_stylegan2_checkpoint(tmp_path / "generator.pt", SPEC)
    jax.tree.map(np.testing.assert_array_equal, loaded._replace(latent_avg=None), weights)
    if home == "bare":
        assert loaded.latent_avg is None
    else:
        np.testing.assert_array_equal(loaded.latent_avg, np.broadcast_to(average.numpy(), (6, 12)))


def test_safetensors_are_read_like_checkpoints(tmp_path, model, weights):
    write_safetensors(tmp_path / "generator.safetensors", reference.state(model, "g_ema."))
    loaded = load_stylegan2_checkpoint(tmp_path / "generator.safetensors", SPEC)
    jax.tree.map(np.testing.assert_array_equal, loaded, weights)


def test_what_does_not_fit_is_named(tmp_path, model):
    tensors = reference.state(model)
    broken = tensors | {"convs.9.conv.weight": np.zeros((1, 2, 2, 3, 3))}
    del broken["style.2.bias"]
    with pytest.raises(ValueError, match=r"missing 'style\.2\.bias'.*unknown 'convs\.9\.conv\.weight'"):
        stylegan2_from_pytorch(SPEC, broken)
    other = tensors | {"to_rgbs.1.upsample.kernel": np.full((4, 4), 0.25, np.float32)}
    with pytest.raises(ValueError, match=r"low-pass filter.*'to_rgbs\.1\.upsample\.kernel'"):
        stylegan2_from_pytorch(SPEC, other)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "noises.noise_4"}
    with pytest.raises(ValueError, match=r"'noises\.noise_4': expected \(1, 1, 16, 16\), got None"):
        stylegan2_from_pytorch(SPEC, fewer)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=r"none of 'g_ema\.input\.input'"):
        load_stylegan2_checkpoint(tmp_path / "encoder.pt", SPEC)
