"""Stable Diffusion in one file: diffusers reads what is written here, it comes back bit for bit, others are refused by name."""

import json

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file

from pidiff_jax.convert.clip_tokenizer import clip_tokenizer
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.recognise import recognise, recognise_tensors
from pidiff_jax.convert.single_file import open_single_file, write_single_file
from pidiff_jax.paths import flatten
from tests.convert.tiny_stable_diffusion import tiny_pipeline, write_words
from tests.launch.commands import call

VERSIONS = ("1.x", "2.x")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pipelines(words):
    return {version: tiny_pipeline(version, words) for version in VERSIONS}


@pytest.fixture(scope="module")
def folders(pipelines, tmp_path_factory):
    paths = {version: tmp_path_factory.mktemp("folder") / version for version in VERSIONS}
    for version, path in paths.items():
        pipelines[version].save_pretrained(path)
    return paths


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory):
    """The pipelines as we write them in one file."""
    paths = {version: tmp_path_factory.mktemp("file") / "model.safetensors" for version in VERSIONS}
    for version, path in paths.items():
        write_single_file(path, open_diffusers_folder(folders[version]))
    return paths


def edited(path, new, **changes):
    """A copy of a file with tensors changed; None takes one away. In names "__" stands for "."."""
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, new)
    return new


@pytest.mark.parametrize("version", VERSIONS)
def test_diffusers_makes_the_same_parts_of_a_file_written_here(version, pipelines, files):
    pipeline, checkpoint = pipelines[version], load_file(files[version])
    unet = theirs.convert_ldm_unet_checkpoint(dict(checkpoint), pipeline.unet.config)
    vae = theirs.convert_ldm_vae_checkpoint(dict(checkpoint), pipeline.vae.config)
    if version == "1.x":
        text = theirs.convert_ldm_clip_checkpoint(dict(checkpoint))
    else:
        text = theirs.convert_open_clip_checkpoint(pipeline.text_encoder, dict(checkpoint))
        text = {
            name: tensor for name, tensor in text.items() if ".layers.2." not in name
        }  # the last, which nobody reads
        text = {name: tensor for name, tensor in text.items() if not name.startswith("text_projection")}
    named = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    expected = {name.removeprefix("text_model."): x for name, x in pipeline.text_encoder.state_dict().items()}
    pairs = [(unet, pipeline.unet.state_dict()), (vae, pipeline.vae.state_dict()), (named, expected)]
    for got, wanted in pairs:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.endswith("position_ids")}
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name].squeeze(), tensor.squeeze()) for name, tensor in wanted.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_tells_the_sizes_and_comes_back_bit_for_bit(version, folders, files, words):
    folder, file = open_diffusers_folder(folders[version]), open_single_file(files[version], tokenizer=words)
    for name in ("unet_spec", "vae_spec", "text_spec", "schedule", "latent_size"):
        assert getattr(file, name) == getattr(folder, name), name
    ours, theirs = flatten(file.load(None)), flatten(folder.load(None))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], array) for path, array in theirs.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_goes_from_folder_to_file_to_folder(version, folders, words, tmp_path):
    there = call(f"--source={folders[version]}", f"--output={tmp_path / 'model.safetensors'}", command="convert")
    assert (there.returncode, there.stderr) == (0, "")
    assert "is a Stable Diffusion folder in diffusers' format; wrote" in there.stdout
    line = (f"--source={tmp_path / 'model.safetensors'}", f"--output={tmp_path / 'again'}", f"--tokenizer={words}")
    back = call(*line, command="convert")
    assert (back.returncode, back.stderr) == (0, "")
    assert f"is Stable Diffusion {version} in one file, with its original names; wrote" in back.stdout
    ours, expected = (flatten(open_diffusers_folder(x).load(None)) for x in (tmp_path / "again", folders[version]))
    assert all(np.array_equal(ours[path], array) for path, array in expected.items())
    assert open_diffusers_folder(tmp_path / "again").schedule == open_diffusers_folder(folders[version]).schedule
    again = call(*line, command="convert")
    assert again.returncode == 1 and again.stderr.startswith("error: expected nothing at ")
    assert again.stderr.count("\n") == 1


def test_a_trainers_checkpoint_is_read_without_its_optimizer_and_averages(files, words, tmp_path):
    state = load_file(files["1.x"])
    extra = {"model_ema.decay": torch.ones(1), "betas": torch.ones(3), "scale_factor": torch.ones(())}
    extra["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(3)
    old = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in state.items()}
    torch.save(
        {"state_dict": old | extra, "global_step": 3, "optimizer_states": [{"state": {0: torch.ones(5)}}]},
        tmp_path / "model.ckpt",
    )
    ours = flatten(open_single_file(tmp_path / "model.ckpt", tokenizer=words).load(None))
    expected = flatten(open_single_file(files["1.x"], tokenizer=words).load(None))
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[path], array) for path, array in expected.items())


FIRST = "model__diffusion_model__input_blocks__0__0__weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_stage_model__surprise": torch.ones(2)}, "unknown 'first_stage_model.surprise' of shape (2,)"),
        ({"first_stage_model__quant_conv__bias": None}, "missing 'first_stage_model.quant_conv.bias'"),
        ({"first_stage_model__quant_conv__bias": torch.ones(3)}, "bias': expected shape (8,), got (3,)"),
        ({"model__diffusion_model__out__2__weight": None}, "a tensor 'model.diffusion_model.out.2.weight', got none"),
        ({FIRST: torch.ones(32, 9, 3, 3)}, "got 9, which is Stable Diffusion inpainting"),
        ({FIRST: torch.ones(32, 5, 3, 3)}, "got 5, which is Stable Diffusion 2 depth"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "expected the noise schedule of Stable Diffusion"),
        (
            {"cond_stage_model__transformer__final_layer_norm__bias": torch.ones(64)},
            "expected one tensor 'cond_stage_model.transformer.text_model.final_layer_norm.bias'",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(files, words, tmp_path, changes, message):
    path = edited(files["1.x"], tmp_path / "broken.safetensors", **changes)
    with pytest.raises(ValueError) as error:
        open_single_file(path, tokenizer=words).load()
    assert message in str(error.value) and "broken.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_infinity_in_a_buffer_that_nothing_reads_does_no_harm(files, words, tmp_path):
    """OpenCLIP's mask of its attention, which some files keep."""
    mask = torch.full((12, 12), -torch.inf).triu(1)
    path = edited(files["2.x"], tmp_path / "mask.safetensors", cond_stage_model__model__attn_mask=mask)
    ours, expected = (flatten(open_single_file(x, tokenizer=words).load(None)) for x in (path, files["2.x"]))
    assert all(np.array_equal(ours[name], array) for name, array in expected.items())


def test_a_2x_file_says_what_it_predicts_or_is_told(files, words, tmp_path):
    silent = edited(files["2.x"], tmp_path / "silent.safetensors", v_pred=None)
    with pytest.raises(ValueError, match=r"give --prediction_type.*v for 768 px models"):
        open_single_file(silent, tokenizer=words)
    told = open_single_file(silent, tokenizer=words, prediction_type="eps")
    assert (told.schedule.prediction_type, told.latent_size) == ("eps", (64, 64))
    save_file(load_file(silent), tmp_path / "spec.safetensors", {"modelspec.prediction_type": "v"})
    written = open_single_file(tmp_path / "spec.safetensors", tokenizer=words)
    assert (written.schedule.prediction_type, written.latent_size) == ("v", (96, 96))
    zero = edited(files["2.x"], tmp_path / "zero.safetensors", ztsnr=torch.zeros(0))
    schedule = open_single_file(zero, tokenizer=words).schedule
    assert schedule.rescale_betas_zero_snr and schedule.timestep_spacing == "trailing"


def test_a_tokenizer_of_another_model_is_refused(files):
    with pytest.raises(ValueError, match="expected a tokenizer of at most .* tokens and texts of 12, got 49408 and 77"):
        open_single_file(files["1.x"])
    assert clip_tokenizer().pad_token_id == 49407
    assert clip_tokenizer(pad="!").pad_token_id == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "got Stable Diffusion 3 in"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "got Flux"),
        (
            ["conditioner.embedders.1.model.ln_final.bias", "model.diffusion_model.input_blocks.0.0.weight"],
            "got SDXL in",
        ),
        (["conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"], "got the SDXL refiner in"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "got no cond_stage_model in"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"], "got a LoRA for SDXL in"),
        (["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"], "got a LoHa"),
        (["control_model.input_hint_block.0.weight"], "got a ControlNet in"),
        (["encoder.down.0.block.0.conv1.weight"], "got an autoencoder alone in"),
        (["down_blocks.0.resnets.0.conv1.weight"], "the UNet of a diffusers folder alone"),
        (["something"], "got 1 tensors that none has, such as 'something', in"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(names, message):
    tensors = LazyTensors.of({name: np.ones((4, 4, 3, 3), np.float32) for name in names})
    with pytest.raises(ValueError) as error:
        recognise_tensors(tensors, "file")
    assert message in str(error.value) and "; " in str(error.value) and "\n" not in str(error.value)


def test_folders_are_recognised_by_their_index(folders, tmp_path):
    assert recognise(folders["1.x"]).kind == "diffusers_folder"
    with pytest.raises(ValueError, match=r"name one of its files, such as .*/unet/diffusion_pytorch_model.safetensors"):
        recognise(folders["1.x"] / "unet")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(ValueError, match="got a FluxPipeline"):
        recognise(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing"):
        recognise(tmp_path / "gone")
