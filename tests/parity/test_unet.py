"""The UNet computes what diffusers' UNet2DConditionModel computes, for Stable Diffusion 1.x and 2.x layouts."""

import functools

import diffusers
import jax
import numpy as np
import pytest
import torch

from pidiff_jax.convert.diffusers_config import unet_spec
from pidiff_jax.convert.table import to_foreign, to_ours
from pidiff_jax.convert.unet import unet_table
from pidiff_jax.models.attention import Conditioning
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import UNet, UNetSpec
from pidiff_jax.models.unet_blocks import ResnetBlock, SpatialTransformer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

CONFIGS = {
    "sd1": {"attention_head_dim": 4, "cross_attention_dim": 24, "use_linear_projection": False},
    "sd2": {"attention_head_dim": (2, 4, 6), "cross_attention_dim": 40, "use_linear_projection": True},
}


def randomised(model):
    """The model with norms and biases that aren't the constants of its own initialisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@functools.lru_cache
def reference(family: str):
    """A tiny diffusers UNet whose every parameter is random."""
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        **CONFIGS[family],
    )
    return randomised(model)


def tensors(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def converted(family):
    spec = unet_spec(reference(family).config)
    return spec, to_ours(unet_table(spec), tensors(reference(family)))


@pytest.mark.parametrize("family", CONFIGS)
def test_predictions_agree(family):
    model, (spec, params) = reference(family), converted(family)
    latents, text = random(2, 8, 12, 4), random(2, 7, spec.cross_attention_dim, seed=1)
    timesteps = np.array([3, 981], np.int32)
    expected = nhwc(model(nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(text)).sample)
    ours = jax.jit(UNet(spec).apply)({"params": params}, latents, timesteps, TextConditioning(text))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_single_layers_agree(family):
    model, (spec, params) = reference(family), converted(family)
    x, time_embed, text = random(2, 4, 4, 32), random(2, 64, seed=1), random(2, 7, spec.cross_attention_dim, seed=2)
    block, ours = model.down_blocks[1], params["down_blocks_1"]
    wide = x[..., :16]
    expected = nhwc(block.resnets[0](nchw(wide), torch.from_numpy(time_embed)))
    apply = jax.jit(ResnetBlock(32, 8).apply)
    out = apply({"params": ours["resnets_0"]}, wide, time_embed)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)

    expected = nhwc(block.attentions[0](nchw(x), torch.from_numpy(text)).sample)
    transformer = SpatialTransformer(spec.num_heads[1], 1, 8, spec.use_linear_projection)
    apply = jax.jit(lambda params, x, text: transformer.apply({"params": params}, x, Conditioning(text)))
    out, maps = apply(ours["attentions_0"], x, text)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
    assert maps == {}


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_survive_both_directions_bit_for_bit(family):
    spec, params = converted(family)
    original = tensors(reference(family))
    back = to_foreign(unet_table(spec), params)
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_missing_unknown_and_misshapen_tensors_are_named():
    spec, _ = converted("sd1")
    wrong = tensors(reference("sd1")) | {"conv_in.bias": np.zeros(3, np.float32), "extra.weight": np.zeros(1)}
    del wrong["conv_out.weight"]
    with pytest.raises(ValueError) as error:
        to_ours(unet_table(spec), wrong)
    assert all(name in str(error.value) for name in ("conv_in.bias", "extra.weight", "conv_out.weight"))


def test_stable_diffusion_1_5_has_the_published_number_of_parameters():
    assert sum(int(np.prod(entry.shape)) for entry in unet_table(UNetSpec.sd15())) == 859_520_964


@pytest.mark.full
def test_predictions_agree_at_the_size_of_stable_diffusion_1_5():
    torch.manual_seed(0)
    model = randomised(diffusers.UNet2DConditionModel(cross_attention_dim=768))
    # At 64x64 the highest level takes the code paths of the real job: XLA's convolutions and attention in chunks.
    latents, text, timesteps = random(1, 64, 64, 4), random(1, 77, 768, seed=1), np.array([500], np.int32)
    expected = nhwc(model(nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(text)).sample)
    params = to_ours(unet_table(UNetSpec.sd15()), tensors(model))
    del model
    ours = jax.jit(UNet(UNetSpec.sd15()).apply)({"params": params}, latents, timesteps, TextConditioning(text))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
