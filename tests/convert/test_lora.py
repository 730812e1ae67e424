"""A LoRA of any layout is merged by the published formula; one of another model or form is refused by name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pidiff_jax.convert.base_model import open_base_model
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.lora import parse_lora, with_loras
from pidiff_jax.paths import flatten
from tests.convert.tiny_stable_diffusion import tiny_pipeline, write_words
from tests.launch.commands import call

# Layer of the UNet -> kernel size of its convolution, None of a linear layer; the last is one of the text encoder.
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV, POINT = "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
RANK, ALPHA = 3, 1.5


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline("1.x", write_words(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "folder"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def matrices(pipeline):
    """(down, up) of each layer, as their training programs shape them."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for layer in (QUERY, OUT, CONV, POINT, TEXT):
        outputs, *inputs = module(pipeline, layer).weight.shape
        ones = (1,) * (len(inputs) - 1)
        made[layer] = (
            torch.randn(RANK, *inputs, generator=generator), torch.randn(outputs, RANK, *ones, generator=generator)
        )  # fmt: skip
    return made


def module(pipeline, layer):
    if layer == TEXT:
        return dict(pipeline.text_encoder.named_modules())[find(pipeline.text_encoder, layer)]
    return pipeline.unet.get_submodule(layer)


def find(encoder, layer):
    names = dict(encoder.named_modules())
    return layer if layer in names else layer.removeprefix("text_model.")


def kohya(matrices):
    tensors = {}
    for layer, (down, up) in matrices.items():
        name = f"lora_{'te' if layer == TEXT else 'unet'}_{layer.replace('.', '_')}"
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def peft(matrices):
    tensors = {}
    for layer, (down, up) in matrices.items():
        name = f"{'text_encoder' if layer == TEXT else 'unet'}.{layer}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


SETTINGS = {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {}, "use_rslora": False, "bias": "none"}
PEFT_SETTINGS = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in SETTINGS.items()}


def written(path, layout, matrices):
    if layout == "kohya":
        save_file(kohya(matrices), path)
    else:
        save_file(peft(matrices), path, {"lora_adapter_metadata": json.dumps(PEFT_SETTINGS)})
    return path


def expected(pipeline, folder, matrices, scale, tmp_path):
    """The merged model as PyTorch computes it, saved and read again: the update is what the layer's LoRA path adds."""
    with torch.no_grad():
        before = {}
        for layer, (down, up) in matrices.items():
            weight = module(pipeline, layer).weight
            before[layer] = weight.clone()
            if weight.ndim == 2:
                delta = torch.nn.functional.linear(torch.nn.functional.linear(torch.eye(weight.shape[1]), down), up).T
            else:  # an impulse at each place and channel, through both convolutions, gives the kernel flipped
                size = weight.shape[2]
                impulses = torch.eye(weight.shape[1])[:, :, None, None]
                impulses = torch.nn.functional.pad(impulses, (size - 1,) * 4)
                response = torch.nn.functional.conv2d(torch.nn.functional.conv2d(impulses, down), up)
                delta = response.flip(2, 3).transpose(0, 1)
            weight += scale * ALPHA / RANK * delta
        pipeline.save_pretrained(tmp_path / "merged")
        for layer, weight in before.items():
            module(pipeline, layer).weight.copy_(weight)
    return flatten(open_diffusers_folder(tmp_path / "merged").load())


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_a_lora_is_merged_as_its_layers_compute(layout, pipeline, folder, matrices, tmp_path):
    path = written(tmp_path / "lora.safetensors", layout, matrices)
    merged = flatten(open_base_model(folder, loras=[(path, 0.7)]).load())
    plain, wanted = flatten(open_base_model(folder).load()), expected(pipeline, folder, matrices, 0.7, tmp_path)
    changed = {name for name in plain if not np.array_equal(plain[name], wanted[name])}
    assert len(changed) == len(matrices)
    for name, array in wanted.items():
        np.testing.assert_allclose(merged[name], array, rtol=0, atol=1e-5 if name in changed else 0)


def test_the_command_merges_loras_at_their_scales(folder, matrices, tmp_path):
    style = written(tmp_path / "style.safetensors", "kohya", matrices)
    other = written(tmp_path / "other.safetensors", "peft", {CONV: matrices[CONV]})
    flags = (f"--source={folder}", f"--output={tmp_path / 'out'}", f"--lora={style}:0.5", f"--lora={other}")
    result = call(*flags, command="convert")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{style} merged in at 0.5, with {other} merged in at 1" in result.stdout
    merged = flatten(open_diffusers_folder(tmp_path / "out").load())
    wanted = flatten(with_loras(open_base_model(folder), [(style, 0.5), (other, 1.0)]).load())
    assert all(np.array_equal(merged[name], array) for name, array in wanted.items())
    alone = call(f"--source={style}", f"--output={tmp_path / 'lora'}", command="convert")
    assert alone.returncode == 1 and f"write --source=BASE --lora={style}:SCALE" in alone.stderr


def test_older_names_of_diffusers_and_names_of_the_original_files_are_the_same_layers(folder, matrices, tmp_path):
    down, up = matrices[QUERY]
    base, changed = f"unet.{QUERY.removesuffix('.to_q')}", set()
    forms = {
        "processor": (f"{base}.processor.to_q_lora.down.weight", f"{base}.processor.to_q_lora.up.weight"),
        "layer": (f"{base}.to_q.lora_linear_layer.down.weight", f"{base}.to_q.lora_linear_layer.up.weight"),
        "original": tuple(
            f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_q.lora_{x}.weight" for x in ("down", "up")
        ),
    }
    plain, results = flatten(open_base_model(folder).load()), []
    for name, (first, second) in forms.items():
        save_file({first: down, second: up}, tmp_path / f"{name}.safetensors")
        merged = flatten(open_base_model(folder, loras=[(tmp_path / f"{name}.safetensors", 1.0)]).load())
        changed |= {path for path, array in plain.items() if not np.array_equal(array, merged[path])}
        results.append(merged)
    (path,) = changed
    assert all(np.array_equal(results[0][path], merged[path]) for merged in results)


def test_a_file_of_peft_needs_its_config(folder, matrices, tmp_path):
    names = {f"base_model.model.{QUERY}.lora_{x}.weight": m for x, m in zip("AB", matrices[QUERY], strict=True)}
    path = tmp_path / "adapter_model.safetensors"
    save_file(names, path)
    with pytest.raises(ValueError, match="expected PEFT's adapter_config.json"):
        open_base_model(folder, loras=[(path, 1.0)])
    config = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_q": ALPHA}, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    merged = flatten(open_base_model(folder, loras=[(path, 1.0)]).load())
    kohya_path = tmp_path / "kohya.safetensors"
    save_file(kohya({QUERY: matrices[QUERY]}), kohya_path)
    wanted = flatten(open_base_model(folder, loras=[(kohya_path, 1.0)]).load())
    assert all(np.array_equal(merged[name], array) for name, array in wanted.items())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="expected use_dora of False in PEFT's settings, got True"):
        open_base_model(folder, loras=[(path, 1.0)])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_nothing.lora_down.weight": (3, 4), "lora_unet_nothing.lora_up.weight": (4, 3)}, "no layer"),
        ({f"unet.{QUERY}.lora_A.weight": (3, 32)}, "expected both matrices of .*, got no 'up'"),
        (
            {f"unet.{QUERY}.lora_A.weight": (3, 8), f"unet.{QUERY}.lora_B.weight": (32, 3)},
            r"expected a weight of shape \(32, 32\), got matrices of \(32, 3\) and \(3, 8\); it is of another base model",
        ),
        ({"x.hada_w1_a": (3, 4)}, "got a LoHa"),
        ({"x.lora_A.weight": (3, 4), "x.lora_B.weight": (4, 3), "x.dora_scale": (4,)}, "got a DoRA"),
        ({f"unet.{QUERY}.lora_A.weight": (3, 32), f"unet.{QUERY}.diff_b": (32,)}, "expected tensors of a LoRA only"),
        ({"w_proj.norm.weight": (3,), "wplus_adapter.1.to_k": (3,)}, "expected a LoRA, got a w-plus-adapter"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused_by_name(folder, tmp_path, tensors, message):
    path = tmp_path / "bad.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(ValueError, match=message) as error:
        open_base_model(folder, loras=[(path, 1.0)])
    assert "bad.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("settings", ["no JSON", '{"unet.lora_alpha": 6, "unet.lora_alpha": 12}'])
def test_settings_in_a_file_that_say_nothing_or_two_things_are_refused(folder, matrices, tmp_path, settings):
    path = tmp_path / "bad.safetensors"
    save_file(peft({QUERY: matrices[QUERY]}), path, {"lora_adapter_metadata": settings})
    with pytest.raises(ValueError, match="expected JSON as lora_adapter_metadata, each key once, got something else"):
        open_base_model(folder, loras=[(path, 1.0)])


def test_file_and_scale_are_told_apart():
    for text, file, scale in (("a.bin", "a.bin", 1.0), ("a.bin:0.5", "a.bin", 0.5), ("a:b.bin", "a:b.bin", 1.0)):
        path, found = parse_lora(text, "--lora")
        assert (str(path), found) == (file, scale)
    with pytest.raises(ValueError, match="expected --lora as FILE or FILE:SCALE, got 'a:nan'"):
        parse_lora("a:nan", "--lora")
