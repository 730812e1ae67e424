"""Folders as their authors published them, shrunk in width, give diffusers' numbers here; those of other models are refused."""

import functools
import json
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pidiff_jax.convert import diffusers_config as configs
from pidiff_jax.convert.base_model import check_base_model, open_base_model
from pidiff_jax.convert.clip_tokenizer import clip_tokenizer, tokenize, write_tokenizer
from pidiff_jax.convert.diffusers_folder import noise_schedule, open_diffusers_folder
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import UNet, UNetSpec
from pidiff_jax.models.vae import VAESpec

PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_text(encoding="utf-8"))
FILES = {
    "model_index": "model_index.json", "unet": "unet/config.json", "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json", "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json", "special_tokens_map": "tokenizer/special_tokens_map.json",
}  # fmt: skip
# Sizes only: what the numbers are made of stays as published. The numbers of heads divide the widths, as they did.
SHRUNK = {
    "1.x": {
        "unet": {"block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8, "cross_attention_dim": 24},
        "text_encoder": {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2},
    },
    "2.x": {
        "unet": {"block_out_channels": [20, 40, 80, 80], "norm_num_groups": 5, "cross_attention_dim": 32},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    },
}
SHRUNK_UNET = {"layers_per_block": 1}
SHRUNK_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
V_PREDICTION = ("Stable Diffusion 2.0 (768)", "Stable Diffusion 2.1 (768)")
SIZES = {name: (96, 96) for name in V_PREDICTION} | {
    "Furry Diffusion": (32, 32), "a copy of Dreamlike Diffusion 1.0": (80, 80)
}  # fmt: skip
# What the one line of an error says of a folder that isn't supported.
REFUSED = {
    "Stable Diffusion 1.5 inpainting": "got a StableDiffusionInpaintPipeline",
    "Stable Diffusion 2 inpainting": "got a StableDiffusionInpaintPipeline",
    "Stable Diffusion image variations": "got a StableDiffusionImageVariationPipeline",
    "InteractDiffusion": "got a StableDiffusionInteractDiffusionPipeline",
    "Stable Diffusion XL": "got a StableDiffusionXLPipeline",
    "MeinaMix in ONNX": "got a OnnxStableDiffusionPipeline",
    "LGM": "got a LGMFullPipeline",
    "LDM super resolution": "got a LDMSuperResolutionPipeline",
}


def version(model) -> str:
    return "1.x" if model["unet"]["cross_attention_dim"] == 768 else "2.x"


def shrunk(model):
    """The published configs of a model with smaller networks."""
    sizes = SHRUNK[version(model)]
    changes = {"unet": sizes["unet"] | SHRUNK_UNET, "vae": SHRUNK_VAE, "text_encoder": sizes["text_encoder"]}
    for part, values in changes.items():
        assert values.keys() <= model[part].keys()  # no field that the published config doesn't have
    return model | {part: model[part] | values for part, values in changes.items()}


def write_configs(folder, model):
    for part, name in FILES.items():
        if part in model:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(model[part]), encoding="utf-8")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """CLIP's vocab.json and merges.txt, to which the published tokenizer configs belong."""
    folder, tokenizer = tmp_path_factory.mktemp("clip"), clip_tokenizer()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    write_tokenizer(folder, tokenizer.get_vocab(), [tuple(pair) for pair in merges], max_length=77)
    return folder


@functools.cache
def program(network, spec):
    """A network's forward pass, compiled once for all models of its size."""
    return jax.jit(network(spec).apply)


def written(folder, model, vocabulary):
    """Writes a folder with the weights that diffusers and transformers make of the configs, which stay as they are."""
    torch.manual_seed(0)
    networks = {
        "unet": UNet2DConditionModel.from_config(model["unet"]), "vae": AutoencoderKL.from_config(model["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**model["text_encoder"])),
    }  # fmt: skip
    for part, network in networks.items():
        with torch.no_grad():  # norms and biases that do something
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        network.float().eval().save_pretrained(folder / part)
    shutil.copytree(vocabulary, folder / "tokenizer")
    write_configs(folder, model)
    return networks


@pytest.mark.parametrize("name", PUBLISHED["opened"])
def test_the_full_size_is_that_of_stable_diffusion(name):
    model = PUBLISHED["opened"][name]
    first = version(model) == "1.x"
    assert configs.unet_spec(model["unet"]) == (UNetSpec.sd15() if first else UNetSpec.sd21())
    assert configs.text_spec(model["text_encoder"]) == (ClipTextSpec.sd15() if first else ClipTextSpec.sd21())
    assert configs.vae_spec(model["vae"]) == VAESpec.sd15()
    assert configs.latent_size(model["unet"]) == SIZES.get(name, (64, 64))


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED["opened"])
def test_a_folder_with_published_configs_gives_diffusers_numbers(name, vocabulary, tmp_path):
    published = PUBLISHED["opened"][name]
    model = shrunk(published)
    networks = written(tmp_path, model, vocabulary)
    check_base_model(tmp_path)
    opened = open_base_model(tmp_path)

    kind = getattr(diffusers, model["model_index"]["scheduler"][1])
    scheduler, ddim = kind.from_config(model["scheduler"]), DDIMScheduler.from_config(model["scheduler"])
    alphas = noise_schedule(opened.schedule).alphas_cumprod
    np.testing.assert_allclose(alphas, scheduler.alphas_cumprod, rtol=0, atol=1e-6)
    prediction = {"epsilon": "eps", "v_prediction": "v"}[scheduler.config.prediction_type]
    assert opened.schedule.prediction_type == prediction == ("v" if name in V_PREDICTION else "eps")
    for field in ("timestep_spacing", "set_alpha_to_one", "steps_offset"):
        assert getattr(opened.schedule, field) == ddim.config[field], field

    ids = tokenize(opened.tokenizer, ["a photo of a person", ""])
    assert ids.shape == (2, 77)
    # Texts of 2.x are filled with OpenCLIP's token 0, those of 1.x with CLIP's end of a text.
    assert set(ids[1, 2:]) == {49407 if version(published) == "1.x" else 0}

    params = opened.load()  # every tensor of every part has a place
    text = program(ClipText, opened.text_spec)({"params": params["text_encoder"]}, ids)
    theirs = networks["text_encoder"](torch.tensor(ids, dtype=torch.long)).last_hidden_state
    np.testing.assert_allclose(text, theirs, rtol=0, atol=1e-4)

    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    times = np.array([3, 801])
    ours = program(UNet, opened.unet_spec)({"params": params["unet"]}, latents, times, TextConditioning(text))
    theirs = networks["unet"](torch.tensor(latents).permute(0, 3, 1, 2), torch.tensor(times), theirs).sample
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("check", [open_base_model, open_diffusers_folder, check_base_model])
@pytest.mark.parametrize("name", PUBLISHED["refused"])
def test_a_folder_of_another_pipeline_is_refused_by_its_name(name, check, tmp_path):
    write_configs(tmp_path, PUBLISHED["refused"][name])
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        check(tmp_path)
    assert str(tmp_path) in str(error.value) and "; supported are" in str(error.value)
    assert "\n" not in str(error.value)
