"""The embedded base is a Stable Diffusion as diffusers has it: its own pipeline opens it and draws the same pictures.

With an adapter of the quickstart's form too, loaded by that pipeline's own method.
"""

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from flax import linen as nn

from pidiff_jax.convert.adapter import to_ip_adapter
from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.image_projection import image_embeds
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, unet_shapes
from pidiff_jax.models.unet import IdentityAttentionSpec, init_identity_from_text
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.sampling.generate import Sampling, generate
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.judges import held_out_people
from pidiff_jax.worlds.portraits.renderer import caption, held_out_scenes
from pidiff_jax.worlds.portraits.sources import load_wplus_encoder
from pidiff_jax.worlds.portraits.weight_files import load_weights
from tests.models.tiny_unet import random_params

SAMPLING = Sampling(num_steps=20, guidance_scale=2.5)
# As in the quickstart: four tokens for each layer of W+, and a sink.
LAYERS = tuple((layer, layer + 1) for layer in range(networks.NUM_WPLUS_LAYERS))
MAPPER = MapperSpec(LAYERS, networks.WPLUS_DIM, networks.TOKEN_DIM, tokens_per_group=4)
IDENTITY = IdentityAttentionSpec("decoupled", networks.TOKEN_DIM, sink=True)


@pytest.fixture(scope="module")
def params():
    return {**load_weights("base"), **load_weights("vae")}


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedded") / "base"
    components = networks.base_components()
    write_diffusers_folder(
        path, params, unet_spec=networks.UNET, vae_spec=networks.VAE, text_spec=networks.text_spec(),
        tokenizer=components.tokenizer, schedule=networks.SCHEDULE, latent_size=networks.LATENT_SIZE,
    )  # fmt: skip
    return path


def test_stock_diffusers_draws_the_pictures_of_the_shipped_weights(params, folder):
    components, texts = networks.base_components(), [caption(scene) for scene in held_out_scenes(2)]
    noise = np.array(jax.random.normal(jax.random.key(3), (2, *components.noise_shape)))
    ids = tokenize(components.tokenizer, texts)
    ours, _ = jax.jit(lambda *arrays: generate(components, *arrays, sampling=SAMPLING))(params, noise, ids)

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts, num_inference_steps=SAMPLING.num_steps, guidance_scale=SAMPLING.guidance_scale, output_type="np",
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
    ).images  # fmt: skip
    assert theirs.shape == (2, 64, 64, 3) and theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def with_adapter(params):
    """The shipped weights with an adapter as a training begins, and a mapper at random."""
    components = networks.base_components().with_identity(IDENTITY, MAPPER)
    fresh = random_params(nn.meta.unbox(unet_shapes(components.unet)))
    unet = init_identity_from_text(unflatten({**flatten(fresh), **flatten(params["unet"])}), value_scale=5.0)
    mapper = random_params(nn.meta.unbox(mapper_shapes(IdentityMapper(MAPPER))), seed=4)
    mapper["norm"]["bias"] *= 0  # a sink's token is zero
    return components, {**params, "unet": unet, "mapper": mapper}


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_stock_diffusers_draws_a_person_with_an_adapter_of_the_quickstarts_form(with_adapter, folder, tmp_path, scale):
    components, params = with_adapter
    text = caption(held_out_scenes(1)[0])
    wplus = np.asarray(held_out_people("validation", 1, load_wplus_encoder()).wplus)
    noise = np.array(jax.random.normal(jax.random.key(3), (1, *components.noise_shape)))
    draw = jax.jit(lambda *arrays: generate(components, *arrays, sampling=SAMPLING)[0])
    ids = tokenize(components.tokenizer, [text])
    ours = draw(params, noise, ids, wplus, np.float32(scale))
    assert np.abs(ours - draw(params, noise, ids, wplus, np.float32(0))).max() > 0.1

    write_safetensors(tmp_path / "adapter.safetensors", to_ip_adapter(params, components.unet.spec, MAPPER))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(
        tmp_path, subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None, low_cpu_mem_usage=False
    )
    pipeline.set_ip_adapter_scale(scale)
    embeds = torch.from_numpy(image_embeds(wplus, MAPPER, IDENTITY.sink))
    theirs = pipeline(
        text, num_inference_steps=SAMPLING.num_steps, guidance_scale=SAMPLING.guidance_scale, output_type="np",
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
    ).images  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_the_folder_opens_here_as_the_specs_that_it_was_written_from(folder):
    opened = open_diffusers_folder(folder)
    assert (opened.unet_spec, opened.vae_spec) == (networks.UNET, networks.VAE)
    assert (opened.text_spec, opened.schedule) == (networks.text_spec(), networks.SCHEDULE)
    assert opened.latent_size == networks.LATENT_SIZE
