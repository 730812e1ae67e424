"""Wrong models, as people have them, are refused in one line with a remedy; nothing is written, changed or run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from pidiff_jax.convert.conversion import convert
from tests.launch.commands import call
from tests.launch.wrong_files import (
    DAMAGED,
    FINITE,
    INFINITY,
    NAN,
    TEXT,
    UNET,
    VAE,
    assert_refused,
    broken_link,
    content,
    pickle_with_code,
    with_number,
)  # fmt: skip

# Tensors of the one file.
CONV, QUERY = (
    "model.diffusion_model.out.2.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight",
)
MISFIT = r": the weights don't fit this model: .*check that the file and the spec name the same model"
SUPPORTED = r"supported are Stable Diffusion 1\.x and 2\.x"


def ckpt(x):
    torch.save({"state_dict": load_file(x.file)}, x.path / "model.ckpt")
    return x.path / "model.ckpt"


def ckpt_cut_short(x):
    path = ckpt(x)
    return x.bytes(path.read_bytes()[:-5000], "model.ckpt")


def renamed(x, source, name):
    shutil.copyfile(source, x.path / name)
    return {"source": x.path / name}


def other_text_encoder(folder):
    """Saves one of other sizes, as Stable Diffusion 2.x has beside 1.x."""
    config = CLIPTextConfig(
        vocab_size=600, hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, hidden_act="gelu",
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)


def text_encoder_of_another_version(x):
    folder = x.copy()
    other_text_encoder(folder / "text_encoder")
    return {"source": folder}


def weights_of_another_version(x):
    other_text_encoder(x.path / "other")
    return x.swapped(TEXT, (x.path / "other" / "model.safetensors").read_bytes())


def shard_missing(x):
    folder = x.copy()
    names = dict.fromkeys(load_file(folder / UNET), "diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / UNET).unlink()
    index = {"weight_map": names | {min(names): "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return {"source": folder}


def shards_of_two_models(x):
    folder = x.copy()
    names = dict.fromkeys(load_file(folder / VAE), "diffusion_pytorch_model-00001-of-00001.safetensors")
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors")
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    return {"source": folder}


def two_names_for_a_layer(x):
    short = "cond_stage_model.transformer.final_layer_norm.weight"
    return x.tensors({short: torch.ones(64)})


def two_names_in_the_vae(x):
    folder = x.copy()
    tensors = load_file(folder / VAE)
    old = {n.replace("to_q", "query"): t.clone() for n, t in tensors.items() if "to_q" in n}
    save_file(tensors | old, folder / VAE)
    return {"source": folder}


def tokenizer_of(x, **files):
    folder = x.path / "tokenizer"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return {"source": x.file, "tokenizer": folder}


# What is wrong -> how it is made, and what is said.
KINDS = {
    # Files that are no weights.
    "nothing": (lambda x: {"source": x.path / "gone"}, r"expected a model at .*gone, found nothing; check the path"),
    "a broken link": (lambda x: {"source": broken_link(x)}, r"found nothing; check the path"),
    "an empty file": (lambda x: x.bytes(b""), DAMAGED + "empty; download or copy it again"),
    "an empty .ckpt": (lambda x: x.bytes(b"", "model.ckpt"), r"got .*model\.ckpt, which is empty; download"),
    "half of a file": (
        lambda x: x.bytes(x.file.read_bytes()[: x.file.stat().st_size // 2]),
        DAMAGED + "damaged.*; download",
    ),
    "a file cut short in its header": (lambda x: x.bytes(x.file.read_bytes()[:100]), DAMAGED + "damaged.*; download"),
    "half of a .ckpt": (
        ckpt_cut_short,
        r"expected a whole PyTorch file, got .*model\.ckpt, which is damaged.*; download",
    ),
    "a web page": (lambda x: x.bytes(b"\n<!DOCTYPE html><html>Sign in"), DAMAGED + "a web page; download"),
    "a message": (
        lambda x: x.bytes(b"Invalid username or password."),
        DAMAGED + "damaged or of another kind; download",
    ),
    "a pointer of Git LFS": (
        lambda x: x.bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"),
        DAMAGED + r"a pointer of Git LFS .*git lfs pull",
    ),
    "a pointer of Git LFS in a folder": (
        lambda x: x.swapped(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"),
        r"unet/.*\.safetensors, which is a pointer of Git LFS .*git lfs pull",
    ),
    "a .ckpt renamed to .safetensors": (
        lambda x: renamed(x, ckpt(x), "model.safetensors"),
        DAMAGED + r"a PyTorch file or another zip archive \(rename it to \.ckpt",
    ),
    "a safetensors file renamed to .ckpt": (
        lambda x: renamed(x, x.file, "model.ckpt"),
        r"model\.ckpt, which is a safetensors file \(rename it to \.safetensors",
    ),
    "a GGUF file": (
        lambda x: x.bytes(b"GGUF\x03", "model.gguf"),
        r"got .*model\.gguf.*; take the model's \.safetensors",
    ),
    "an ONNX file": (
        lambda x: x.bytes(b"\x08\x07", "model.onnx"),
        r"got .*model\.onnx.*; take the model's \.safetensors",
    ),
    "an unfinished download": (lambda x: x.bytes(b"", "model.safetensors.part"), r"got .*\.part; take the model's"),
    "a device": (lambda x: {"source": Path("/dev/null")}, "expected a weight file at /dev/null, found none"),
    "a pickle with code": (
        pickle_with_code,
        r"got .*model\.ckpt, which holds .*open: code that is never run here; .*state dict",
    ),
    "an old pickle with code": (
        lambda x: pickle_with_code(x, _use_new_zipfile_serialization=False),
        r"open: code that is never run here",
    ),
    "a pickle with code named .bin": (lambda x: pickle_with_code(x, "model.bin"), r"open: code that is never run here"),
    # Numbers.
    "NaN in one file": (
        lambda x: x.tensors({CONV: with_number(NAN)(load_file(x.file)[CONV])}),
        FINITE.format("model.safetensors", "NaN"),
    ),
    "infinity in one file": (
        lambda x: x.tensors({QUERY: with_number(INFINITY)(load_file(x.file)[QUERY])}),
        FINITE.format("model.safetensors", "infinity"),
    ),
    "NaN in half precision": (
        lambda x: x.tensors({CONV: with_number(NAN)(load_file(x.file)[CONV]).bfloat16()}),
        FINITE.format("model.safetensors", "NaN"),
    ),
    "NaN in a UNet": (lambda x: x.edited(UNET, with_number(NAN)), FINITE.format(UNET, "NaN")),
    "infinity in a VAE": (lambda x: x.edited(VAE, with_number(-INFINITY)), FINITE.format(VAE, "infinity")),
    "a weight too large for half precision": (
        lambda x: x.edited(UNET, with_number(1e6)) | {"dtype": "float16"},
        r"expected finite numbers in 'unet/.*' in float16, got infinity; take bfloat16 or float32",
    ),
    # Folders.
    "an empty folder": (
        lambda x: {"source": x.words.parent},
        r"expected a folder with model_index\.json, .*name one of its files",
    ),
    "a folder without its index": (
        lambda x: x.without("model_index.json"),
        r"expected a folder with model_index\.json, or a file.*; check the path",
    ),
    "a folder without a config": (
        lambda x: x.without("unet/config.json"),
        r"missing unet/config\.json; download the whole",
    ),
    "a folder without weights": (
        lambda x: x.without(UNET),
        r"missing unet/diffusion_pytorch_model\.safetensors; download the whole",
    ),
    "a folder without its tokenizer": (
        lambda x: x.without("tokenizer/tokenizer.json"),
        r"missing tokenizer/vocab\.json with merges\.txt; download",
    ),
    "a part of a folder": (
        lambda x: {"source": x.folder / "unet"},
        r"expected a folder with model_index\.json.*name one of its files, such as .*unet/",
    ),
    "the weights of a part": (
        lambda x: {"source": x.folder / UNET},
        r"got the UNet of a diffusers folder alone \(name the folder",
    ),
    "another pipeline": (
        lambda x: x.config("index", _class_name="StableDiffusionXLPipeline"),
        r"got a StableDiffusionXLPipeline; " + SUPPORTED,
    ),
    "a folder for inpainting": (
        lambda x: x.config("index", _class_name="StableDiffusionInpaintPipeline"),
        r"got a StableDiffusionInpaintPipeline; " + SUPPORTED,
    ),
    "an index that is no JSON": (
        lambda x: x.swapped("model_index.json", b"{'_class_name': "),
        r"expected JSON in .*model_index\.json, got a mistake at line 1; download",
    ),
    "a field twice": (
        lambda x: x.swapped("vae/config.json", b'{"sample_size": 64, "sample_size": 32}'),
        r"expected JSON in .*vae/config\.json, got a mistake: the key 'sample_size' twice; download",
    ),
    "an index that is a list": (
        lambda x: x.swapped("model_index.json", b"[]"),
        r"expected a JSON object in .*, got a list; download",
    ),
    "a config of zeros": (
        lambda x: x.swapped("vae/config.json", b"\x00" * 64),
        r"expected JSON in .*vae/config\.json.*; download",
    ),
    "an unknown field": (
        lambda x: x.config("unet", use_magic=True),
        r"unet/config\.json: expected no field 'use_magic', got True; only models without",
    ),
    "a field of another type": (
        lambda x: x.config("vae", layers_per_block="two"),
        r"vae/config\.json: expected 'layers_per_block' to be a whole number.*'two'; ",
    ),
    "a UNet of other inputs": (
        lambda x: x.config("unet", in_channels=9),
        r"unet in_channels 4 as .*, got 9; the parts are of different",
    ),
    "a scheduler that flows": (
        lambda x: x.config("scheduler", _class_name="FlowMatchEulerDiscreteScheduler"),
        r"scheduler_config\.json: expected .*FlowMatch.*; ",
    ),
    "swapped parts": (lambda x: x.swapped(UNET, (x.folder / VAE).read_bytes()), UNET + MISFIT),
    "the UNet in the place of the VAE": (lambda x: x.swapped(VAE, (x.folder / UNET).read_bytes()), VAE + MISFIT),
    "another version's text encoder": (
        text_encoder_of_another_version,
        r"expected unet cross_attention_dim 128 as the text encoder's hidden_size, got 64; the parts are of different",
    ),
    "the weights of another version's text encoder": (weights_of_another_version, TEXT + MISFIT),
    "a missing shard": (
        shard_missing,
        r"missing unet/.*-00001-of-00002.safetensors, unet/.*-00002-of-00002.safetensors; download",
    ),
    "the shards of another model": (
        shards_of_two_models,
        r"expected .*-00001-of-00001.safetensors to hold what .* lists.*of different models",
    ),
    "a variant that isn't there": (
        lambda x: {"source": x.folder, "variant": "fp16"},
        r"missing .*unet/diffusion_pytorch_model\.fp16\.safetensors \(there are only the plain files: leave the variant out\)",
    ),
    "a variant of a file": (lambda x: {"source": x.file, "variant": "fp16"}, r"expected no variant .*leave it out"),
    "the prediction of a folder": (
        lambda x: {"source": x.folder, "prediction_type": "v"},
        r"expected no tokenizer and no prediction_type",
    ),
    # Other models.
    "SDXL": (lambda x: x.alone({"conditioner.embedders.1.model.ln_final.bias": 4}), "got SDXL in .*" + SUPPORTED),
    "Stable Diffusion 3": (
        lambda x: x.alone({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": 4}),
        "got Stable Diffusion 3 in .*" + SUPPORTED,
    ),
    "Flux": (lambda x: x.alone({"double_blocks.0.img_attn.proj.weight": 4}), "got Flux, .*" + SUPPORTED),
    "inpainting": (
        lambda x: x.alone({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}),
        "expected 4 input channels of the UNet, got 9, which is Stable Diffusion inpainting, in .*" + SUPPORTED,
    ),
    "a ControlNet": (lambda x: x.alone({"control_model.time_embed.0.bias": 4}), "got a ControlNet in .*" + SUPPORTED),
    "a ControlNet of diffusers": (
        lambda x: x.alone({"controlnet_cond_embedding.conv_in.bias": 4, "down_blocks.0.resnets.0.norm1.bias": 4}),
        "got a ControlNet in",
    ),
    "a textual inversion": (
        lambda x: x.alone({"emb_params": (1, 768)}, "cat.safetensors"),
        "got a textual inversion in .*" + SUPPORTED,
    ),
    "a textual inversion of diffusers": (
        lambda x: (torch.save({"<cat>": torch.ones(768)}, x.path / "cat.bin"), {"source": x.path / "cat.bin"})[1],
        "expected a model that is supported, got 1 tensors that none has, such as '<cat>'",
    ),
    "a VAE": (lambda x: {"source": x.folder / VAE}, "got an autoencoder alone in .*" + SUPPORTED),
    "an upscaler": (
        lambda x: x.alone({"model.0.weight": (64, 3, 3, 3)}),
        "got 1 tensors that none has, such as 'model.0.weight'",
    ),
    "no tensors": (lambda x: x.bytes(b"\x02" + b"\x00" * 7 + b"{}"), "got a file without tensors; " + SUPPORTED),
    # Parts of one file.
    "a file without its text encoder": (
        lambda x: x.tensors({n: None for n in load_file(x.file) if n.startswith("cond_stage")}),
        "got no cond_stage_model in .*take the file of",
    ),
    "a file without its VAE": (
        lambda x: x.tensors({n: None for n in load_file(x.file) if n.startswith("first_stage")}),
        r"expected a tensor 'first_stage_model\..*', got none; the file is incomplete",
    ),
    "a missing tensor": (
        lambda x: x.tensors({CONV.replace("weight", "bias"): None}),
        r"missing 'model\.diffusion_model\.out\.2\.bias'",
    ),
    "an unknown tensor": (
        lambda x: x.tensors({"model.diffusion_model.gate": torch.ones(1)}),
        r"unknown 'model\.diffusion_model\.gate' of shape \(1,\)",
    ),
    "a misshapen tensor": (
        lambda x: x.tensors({QUERY: torch.ones(64, 63)}),
        rf"{re.escape(repr(QUERY))}: expected shape \(64, 64\), got \(64, 63\)",
    ),
    "one layer under two names": (
        two_names_for_a_layer,
        r"expected one tensor 'cond_stage_model.transformer.text_model.final_layer_norm.weight', got .*; remove one",
    ),
    "one layer of the VAE under two names": (
        two_names_in_the_vae,
        r"vae/.*: expected one tensor '.*to_q.*', got it as .*; remove one",
    ),
    "another noise schedule": (
        lambda x: x.tensors({"alphas_cumprod": torch.linspace(1, 0, 1000)}),
        "expected the noise schedule of Stable Diffusion .*diffusers folder",
    ),
    # Tokenizers.
    "no tokenizer": (
        lambda x: {"source": x.file, "tokenizer": x.path / "gone"},
        r"expected vocab\.json and merges\.txt, or tokenizer\.json, in .*gone",
    ),
    "CLIP's tokenizer for a model with its own": (
        lambda x: {"source": x.file},
        r"expected a tokenizer of at most .*got 49408 and 77; give the model's own",
    ),
    "a tokenizer of another kind": (
        lambda x: tokenizer_of(
            x, tokenizer__json=json.dumps({"model": {"type": "Unigram", "vocab": [["<pad>", 0.0, 1]]}})
        ),
        "expected tokens with their ids in tokenizer.json, got another form; copy",
    ),
    "a tokenizer without lengths": (
        lambda x: tokenizer_of(
            x, **{n.replace(".", "__"): (x.words / n).read_text(encoding="utf-8") for n in ("vocab.json", "merges.txt")}
        ),
        r"expected model_max_length in the tokenizer_config\.json of .*, got none; add it",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_model_is_refused_in_one_line_and_leaves_nothing(kind, place):
    make, message = KINDS[kind]
    given = {"output": place.path / "new" / "deep" / "model", **make(place)}
    assert_refused(place, message, lambda: convert(**given))


@pytest.mark.parametrize("kind", ["half of a file", "a pickle with code", "NaN in a UNet"])
def test_the_command_says_the_same(kind, place):
    make, message = KINDS[kind]
    given = {"output": place.path / "new" / "model", **make(place)}
    before = content(place.path)
    result = call(*(f"--{name}={value}" for name, value in given.items()), command="convert")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match(rf"error: .*{message}.*\n\Z", result.stderr)
    assert content(place.path) == before
