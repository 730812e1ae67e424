"""LoRAs made and saved by peft and diffusers themselves are merged as these libraries merge them."""

import copy

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pidiff_jax.convert.base_model import open_base_model
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import UNet
from pidiff_jax.paths import flatten
from tests.convert.tiny_stable_diffusion import tiny_pipeline, write_words

# peft reads a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

VERSIONS = ("1.x", "2.x")  # their proj_in is a convolution, and a linear layer
SCALE = 0.7
# Linear layers and convolutions of 3x3 and 1x1, with alphas that aren't the ranks.
UNET = {
    "r": 3, "lora_alpha": 1.5, "init_lora_weights": False,
    "target_modules": ["to_q", "to_out.0", "proj_in", "conv_in", "conv1", "ff.net.0.proj", "time_emb_proj"],
}  # fmt: skip
TEXT = {"r": 2, "lora_alpha": 5, "init_lora_weights": False, "target_modules": ["q_proj", "fc1"]}
# The first pattern that matches counts; one is of two layers, one is anchored; ranks differ too.
PATTERNS = {
    "alpha_pattern": {r"attn1\.to_q": 7, "to_q|conv1": 2, "^conv_in": 4},
    "rank_pattern": {"conv1": 5, "attn2.to_q": 1},
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    words = write_words(tmp_path_factory.mktemp("tokenizer"))
    return {version: tiny_pipeline(version, words) for version in VERSIONS}


@pytest.fixture(scope="module")
def folders(pipelines, tmp_path_factory):
    paths = {version: tmp_path_factory.mktemp("base") / version for version in VERSIONS}
    for version, path in paths.items():
        pipelines[version].save_pretrained(path)
    return paths


def with_adapters(pipeline):
    pipeline = copy.deepcopy(pipeline)
    torch.manual_seed(1)
    pipeline.unet.add_adapter(LoraConfig(**UNET))
    pipeline.text_encoder.add_adapter(LoraConfig(**TEXT))
    return pipeline


def assert_equals(merged, pipeline, base, folder, num_layers):
    """Our merged weights are those of a pipeline, which differ from the base's in so many layers."""
    pipeline.save_pretrained(folder)
    ours, theirs, before = (flatten(x.load()) for x in (merged, open_diffusers_folder(folder), base))
    assert ours.keys() == theirs.keys()
    assert sum(not np.array_equal(ours[path], before[path]) for path in ours) == num_layers
    for path, wanted in theirs.items():
        np.testing.assert_allclose(ours[path], wanted, rtol=1e-6, atol=1e-6, err_msg=path)


def fused(pipeline):
    pipeline.fuse_lora(components=["unet", "text_encoder"], lora_scale=SCALE)
    pipeline.unload_lora_weights()
    return pipeline


def num_layers(*states):
    return sum("lora_A" in name for state in states for name in state)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_that_diffusers_saved_is_merged_as_diffusers_fuses_it(version, pipelines, folders, tmp_path):
    pipeline = with_adapters(pipelines[version])
    unet, text = (get_peft_model_state_dict(x) for x in (pipeline.unet, pipeline.text_encoder))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "lora",
        unet_lora_layers=convert_state_dict_to_diffusers(unet),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(text),
        **_collate_lora_metadata({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}),
    )
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    base = open_base_model(folders[version])
    merged = open_base_model(folders[version], loras=[(file, SCALE)])

    pipeline.unet.set_adapters("default", SCALE)
    rng = np.random.default_rng(0)
    latents, times = rng.standard_normal((2, 8, 8, 4)).astype(np.float32), np.array([3, 801])
    text_embeds = rng.standard_normal((2, 5, 64)).astype(np.float32)
    theirs, before = (
        x.unet(torch.tensor(latents).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text_embeds)).sample
        for x in (pipeline, pipelines[version])
    )
    params = {"params": merged.load()["unet"]}
    ours = jax.jit(UNet(merged.unet_spec).apply)(params, latents, times, TextConditioning(text_embeds))
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=0, atol=1e-4)
    assert (theirs - before).abs().max() > 0.1

    pipeline.unet.set_adapters("default", 1.0)
    assert_equals(merged, fused(pipeline), base, tmp_path / "fused", num_layers(unet, text))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_in_kohyas_layout_is_merged_as_diffusers_loads_it(version, pipelines, folders, tmp_path):
    pipeline = with_adapters(pipelines[version])
    unet = {f"unet.{name}": x for name, x in get_peft_model_state_dict(pipeline.unet).items()}
    text = {f"text_encoder.{name}": x for name, x in get_peft_model_state_dict(pipeline.text_encoder).items()}
    # Diffusers' conversion writes the rank as alpha, which loses the settings; a training program writes alpha itself.
    unet_tensors, text_tensors = convert_state_dict_to_kohya(unet), convert_state_dict_to_kohya(text)
    unet_tensors |= {name: torch.tensor(UNET["lora_alpha"]) for name in unet_tensors if name.endswith(".alpha")}
    text_tensors |= {name: torch.tensor(TEXT["lora_alpha"]) for name in text_tensors if name.endswith(".alpha")}
    # A training program has the name of transformers 4, whose encoder was one level down.
    text_tensors = {name.replace("lora_te1_", "lora_te_text_model_"): x for name, x in text_tensors.items()}
    file, unet_file = tmp_path / "kohya.safetensors", tmp_path / "unet.safetensors"
    save_file({name: x.contiguous() for name, x in (unet_tensors | text_tensors).items()}, file)
    save_file({name: x.contiguous() for name, x in unet_tensors.items()}, unet_file)
    reference = copy.deepcopy(pipelines[version])
    reference.load_lora_weights(unet_file)
    # Diffusers 0.42 passes over attention of a text encoder of transformers 5; what it had is what must come out.
    reference.text_encoder = pipeline.text_encoder
    base, merged = open_base_model(folders[version]), open_base_model(folders[version], loras=[(file, SCALE)])
    assert_equals(merged, fused(reference), base, tmp_path / "fused", num_layers(unet, text))


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("unet", UNET),
        ("unet", UNET | PATTERNS),
        ("unet", UNET | {"use_rslora": True}),
        ("text_encoder", TEXT),
        ("text_encoder", TEXT | {"alpha_pattern": {"layers.1.mlp.fc1": 3}}),
    ],
)
def test_a_lora_that_peft_saved_is_merged_as_peft_merges_it(part, settings, pipelines, folders, tmp_path):
    pipeline = copy.deepcopy(pipelines["1.x"])
    torch.manual_seed(1)
    model = get_peft_model(getattr(pipeline, part), LoraConfig(**settings))
    model.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    count = num_layers(load_file(file))
    setattr(pipeline, part, model.merge_and_unload())
    base, merged = open_base_model(folders["1.x"]), open_base_model(folders["1.x"], loras=[(file, 1.0)])
    assert_equals(merged, pipeline, base, tmp_path / "merged", count)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "got init_lora_weights of 'pissa'"),
        ({"init_lora_weights": "olora"}, "got init_lora_weights of 'olora'"),
        ({"use_dora": True}, "got a DoRA"),
        ({"bias": "lora_only"}, "expected bias of 'none' in PEFT's settings, got 'lora_only'"),
    ],
)
def test_a_lora_that_needs_another_formula_is_refused(settings, message, pipelines, folders, tmp_path):
    layers = {"target_modules": ["to_q"]}
    get_peft_model(copy.deepcopy(pipelines["1.x"].unet), LoraConfig(**UNET | layers | settings)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=message) as error:
        open_base_model(folders["1.x"], loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    assert "adapter_model.safetensors" in str(error.value) and "\n" not in str(error.value)
