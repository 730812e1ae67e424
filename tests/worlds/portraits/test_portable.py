"""The embedded base is a Stable Diffusion as diffusers has it: its own pipeline opens it and draws the same pictures."""

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
from pidiff_jax.sampling.generate import Sampling, generate
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.renderer import caption, held_out_scenes
from pidiff_jax.worlds.portraits.weight_files import load_weights

SAMPLING = Sampling(num_steps=20, guidance_scale=2.5)


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
    ours, _ = jax.jit(lambda p, z: generate(components, p, z, ids, sampling=SAMPLING))(params, noise)

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts, num_inference_steps=SAMPLING.num_steps, guidance_scale=SAMPLING.guidance_scale, output_type="np",
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
    ).images  # fmt: skip
    assert theirs.shape == (2, 64, 64, 3) and theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_the_folder_opens_here_as_the_specs_that_it_was_written_from(folder):
    opened = open_diffusers_folder(folder)
    assert (opened.unet_spec, opened.vae_spec) == (networks.UNET, networks.VAE)
    assert (opened.text_spec, opened.schedule) == (networks.text_spec(), networks.SCHEDULE)
    assert opened.latent_size == networks.LATENT_SIZE
