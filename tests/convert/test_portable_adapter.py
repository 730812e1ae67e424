"""Stock diffusers draws what we draw with an adapter that left as an IP-Adapter file, on a UNet of the embedded world's form.

The weights are random: what is claimed is of the forms. The identity's values are made strong, as the quickstart starts them.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from flax import linen as nn

from pidiff_jax.convert.adapter import from_ip_adapter, to_ip_adapter
from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.convert.image_projection import image_embeds
from pidiff_jax.convert.table import to_foreign
from pidiff_jax.convert.unet import split_identity, unet_table
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, text_encoder_shapes
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec, init_identity_from_text
from pidiff_jax.paths import flatten
from pidiff_jax.sampling.generate import Sampling, generate_latents
from pidiff_jax.worlds.portraits.networks import LATENT_SIZE, NUM_WPLUS_LAYERS, TOKEN_DIM, WPLUS_DIM, base_components
from pidiff_jax.worlds.portraits.tokenizer import caption_ids
from tests.models.tiny_unet import random_params, unet_shapes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

LAYERS = tuple((layer, layer + 1) for layer in range(NUM_WPLUS_LAYERS))
LINEAR = MapperSpec(LAYERS, WPLUS_DIM, TOKEN_DIM)
MLP = dataclasses.replace(LINEAR, kind="mlp", hidden_width=16)
FORTY = dataclasses.replace(LINEAR, tokens_per_group=4)
FORMS = {
    "linear": (LINEAR, False),
    "linear, sink": (LINEAR, True),
    "mlp": (MLP, False),
    "mlp, sink": (MLP, True),
    "linear, 40 tokens, sink": (FORTY, True),
    "mlp, 40 tokens, sink": (dataclasses.replace(FORTY, kind="mlp", hidden_width=16), True),
}
WEIGHTS = "adapter.safetensors"


def unet_spec(sink: bool) -> UNetSpec:
    return dataclasses.replace(
        base_components().unet.spec, identity=IdentityAttentionSpec("decoupled", TOKEN_DIM, sink)
    )


@functools.cache
def unet_params():
    """Random, the identity branch made from the text's as a training begins."""
    return init_identity_from_text(random_params(unet_shapes(unet_spec(sink=True))), value_scale=5.0)


def mapper_params(spec: MapperSpec, sink: bool):
    params = random_params(nn.meta.unbox(mapper_shapes(IdentityMapper(spec))), seed=4)
    if sink:
        params["norm"]["bias"] *= 0
    return params


def wplus_codes(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, NUM_WPLUS_LAYERS, WPLUS_DIM)).astype(np.float32)


def noise(count: int) -> np.ndarray:
    channels = base_components().unet.spec.in_channels
    return np.random.default_rng(6).standard_normal((count, *LATENT_SIZE, channels)).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """Diffusers' pipeline with our base weights; it is given text embeddings and returns latents."""
    spec = base_components().unet.spec
    names = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in spec.down_attention]
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE[0], in_channels=spec.in_channels, out_channels=spec.out_channels,
        block_out_channels=spec.block_out_channels, layers_per_block=spec.layers_per_block, down_block_types=names,
        up_block_types=[name.replace("Down", "Up") for name in reversed(names)], norm_num_groups=spec.norm_num_groups,
        attention_head_dim=spec.num_heads, cross_attention_dim=spec.cross_attention_dim,
        use_linear_projection=spec.use_linear_projection,
    )  # fmt: skip
    tensors = to_foreign(unet_table(spec), split_identity(unet_params())[0])
    unet.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing",
        clip_sample=False, steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(pipeline, folder, spec, sink) -> None:
    """Gives the pipeline a file with our adapter, by its own public method."""
    tensors = to_ip_adapter({"unet": unet_params(), "mapper": mapper_params(spec, sink)}, unet_spec(sink), spec)
    write_safetensors(folder / WEIGHTS, tensors)
    pipeline.load_ip_adapter(
        folder, subfolder="", weight_name=WEIGHTS, image_encoder_folder=None, low_cpu_mem_usage=False
    )


@functools.cache
def predict(sink: bool):
    def apply(params, latents, timesteps, text, tokens):
        return UNet(unet_spec(sink)).apply({"params": params}, latents, timesteps, TextConditioning(text), tokens)

    return jax.jit(apply)


@torch.no_grad()
@pytest.mark.parametrize(("spec", "sink"), FORMS.values(), ids=FORMS)
def test_diffusers_unet_predicts_what_ours_does(pipeline, tmp_path, spec, sink):
    latents, wplus, times = noise(2), wplus_codes(2), np.array([40, 700])
    text = np.random.default_rng(7).standard_normal((2, 6, TOKEN_DIM)).astype(np.float32)
    load(pipeline, tmp_path, spec, sink)
    arguments = (nchw(latents), torch.from_numpy(times), torch.from_numpy(text))

    def theirs(embeds):
        added = {"image_embeds": [torch.from_numpy(embeds)]}
        return pipeline.unet(*arguments, added_cond_kwargs=added).sample.numpy().transpose(0, 2, 3, 1)

    expected = theirs(image_embeds(wplus, spec, sink))
    assert np.abs(expected - theirs(image_embeds(wplus[::-1], spec, sink))).max() > 0.1
    if sink:  # which matters: without its row the prediction is another
        assert np.abs(expected - theirs(image_embeds(wplus, spec, sink)[:, :, :-1])).max() > 0.01
    tokens = jax.jit(IdentityMapper(spec).apply)({"params": mapper_params(spec, sink)}, wplus)
    ours = predict(sink)(unet_params(), latents, times, text, tokens)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_diffusers_pipeline_draws_what_we_draw(pipeline, tmp_path):
    spec, sink, scale, sampling = FORTY, True, 0.8, Sampling(num_steps=5, guidance_scale=2.5)
    components = base_components().with_identity(unet_spec(sink).identity, spec)
    params = {
        "unet": unet_params(),
        "mapper": mapper_params(spec, sink),
        "text_encoder": random_params(nn.meta.unbox(text_encoder_shapes(components.conditioner.text_encoder)), seed=8),
    }
    start, wplus = noise(2), wplus_codes(1)
    text_ids = caption_ids(["a person in a red shirt before a blue striped wall"] * 2)
    run = jax.jit(lambda *arrays: generate_latents(components, *arrays, sampling=sampling))
    ours, _ = run(params, start, text_ids, np.repeat(wplus, 2, axis=0), np.float32(scale))

    prompts = [text_ids, np.broadcast_to(np.asarray(components.null_text_ids, np.int32), text_ids.shape)]
    encode = jax.jit(lambda params, ids: components.conditioner(params, ids).embeds)
    text, null = (torch.from_numpy(np.array(encode(params, ids))) for ids in prompts)
    load(pipeline, tmp_path, spec, sink)
    pipeline.set_ip_adapter_scale(scale)
    embeds = torch.from_numpy(image_embeds(wplus, spec, sink))
    drawn = pipeline(
        prompt_embeds=text, negative_prompt_embeds=null, latents=nchw(start), num_inference_steps=sampling.num_steps,
        guidance_scale=sampling.guidance_scale, output_type="latent",
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
    ).images  # fmt: skip
    assert drawn.std() > 0.3
    np.testing.assert_allclose(ours, drawn.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("spec", "sink"), FORMS.values(), ids=FORMS)
def test_a_file_gives_back_the_adapter_bit_for_bit(tmp_path, spec, sink):
    params = {"unet": split_identity(unet_params())[1], "mapper": mapper_params(spec, sink)}
    tensors = to_ip_adapter(params, unet_spec(sink), spec)
    write_safetensors(tmp_path / WEIGHTS, tensors)
    read = flatten(from_ip_adapter(read_tensors(tmp_path / WEIGHTS), unet_spec(sink), spec))
    assert read.keys() == flatten(params).keys()
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(read[path], leaf, err_msg=path)


def test_the_strength_that_values_began_with_is_in_the_file():
    tensors = to_ip_adapter({"unet": unet_params(), "mapper": mapper_params(LINEAR, False)}, unet_spec(False), LINEAR)
    text = unet_params()["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]["to_v"]["kernel"]
    np.testing.assert_array_equal(tensors["ip_adapter.1.to_v_ip.weight"], 5 * text.T)
