"""The VAE gives the numbers of diffusers' `AutoencoderKL`."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from flax import linen as nn

from pidiff_jax.convert.vae import vae_from_diffusers
from pidiff_jax.models import vae
from pidiff_jax.models.unet_blocks import Resample, ResnetBlock
from pidiff_jax.models.vae import AutoencoderKL, VAESpec

SPEC = VAESpec(block_out_channels=(8, 16, 16), norm_num_groups=4)


def reference(spec: VAESpec) -> TorchAutoencoderKL:
    torch.manual_seed(0)
    levels = len(spec.block_out_channels)
    model = TorchAutoencoderKL(
        block_out_channels=spec.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=spec.layers_per_block,
        latent_channels=spec.latent_channels,
        norm_num_groups=spec.norm_num_groups,
        mid_block_add_attention=spec.mid_attention,
    )
    with torch.no_grad():  # norms that do something
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model.eval()


def ported(spec: VAESpec, model: torch.nn.Module) -> dict:
    return vae_from_diffusers(spec, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("mid_attention", [True, False])
def test_encode_and_decode_match_diffusers(mid_attention):
    spec = VAESpec(block_out_channels=(8, 16, 16), norm_num_groups=4, mid_attention=mid_attention)
    model = reference(spec)
    params = {"params": ported(spec, model)}
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    latents = rng.standard_normal((2, 4, 6, 4)).astype(np.float32)
    with torch.no_grad():
        posterior = model.encode(to_torch(pixels)).latent_dist
        decoded = model.decode(to_torch(latents)).sample
    encode, decode = (jax.jit(partial(AutoencoderKL(spec).apply, method=name)) for name in ("encode", "decode"))
    mean, log_variance = encode(params, pixels)
    np.testing.assert_allclose(mean, to_numpy(posterior.mean), rtol=0, atol=1e-4)
    np.testing.assert_allclose(log_variance, to_numpy(posterior.logvar), rtol=0, atol=1e-4)
    np.testing.assert_allclose(decode(params, latents), to_numpy(decoded), rtol=0, atol=1e-4)


def _layer(name: str):
    """The parameters of a layer of the tiny VAE, and diffusers' layer."""
    model = reference(SPEC)
    params = ported(SPEC, model)
    for part in name.split("/"):
        params = params[part]
    return params, model.get_submodule(re.sub(r"_(\d+)(?=/|$)", r".\1", name).replace("/", "."))


@pytest.mark.parametrize(
    ("path", "module", "width"),
    [
        ("encoder/down_blocks_1/resnets_0", ResnetBlock(16, 4, epsilon=1e-6), 8),
        ("encoder/down_blocks_1/resnets_1", ResnetBlock(16, 4, epsilon=1e-6), 16),
        ("encoder/down_blocks_0/downsamplers_0", Resample(up=False, padding=vae.DOWNSAMPLING_PADDING), 8),
        ("decoder/up_blocks_0/upsamplers_0", Resample(up=True), 16),
        ("decoder/mid_block/attentions_0", vae.SpatialAttention(4), 16),
    ],
)
def test_layers_match_diffusers(path, module, width):
    params, torch_layer = _layer(path)
    x = np.random.default_rng(1).standard_normal((2, 6, 4, width)).astype(np.float32)
    with torch.no_grad():
        expected = torch_layer(to_torch(x), temb=None) if "resnets" in path else torch_layer(to_torch(x))
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), to_numpy(expected), rtol=0, atol=1e-5)


def test_full_size_tree_has_the_published_number_of_parameters():
    pixels = jnp.zeros((1, 64, 64, 3))
    shapes = nn.meta.unbox(jax.eval_shape(AutoencoderKL(VAESpec.sd15()).init, jax.random.key(0), pixels))["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 83_653_863


def test_pixels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"divisible by 4, got \(18, 16\)"):
        jax.eval_shape(AutoencoderKL(SPEC).init, jax.random.key(0), jnp.zeros((1, 18, 16, 3)))


def test_half_precision_keeps_parameters_and_results_in_float32():
    model, pixels = AutoencoderKL(SPEC, jnp.bfloat16), jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)
    outputs = jax.eval_shape(lambda p, x: model.apply(p, x, method="encode"), params, pixels)
    assert {x.dtype for x in jax.tree.leaves((params, outputs))} == {jnp.dtype(jnp.float32)}
