"""Wrong LoRAs and adapters are refused in one line with a remedy; nothing is written, changed or run."""

import json

import numpy as np
import pytest
import torch
from flax import linen as nn
from safetensors.torch import save_file

from pidiff_jax.convert.adapter import check_adapter_file, load_adapter_file
from pidiff_jax.convert.conversion import convert
from pidiff_jax.convert.lora import parse_lora
from pidiff_jax.convert.unet import split_identity
from pidiff_jax.export.export import export_run
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.runs.adapter_file import write_adapter
from tests.export.tiny_run import tiny_config
from tests.launch.wrong_files import DAMAGED, FINITE, INFINITY, NAN, assert_refused, pickle_with_code, with_number
from tests.models.tiny_unet import TOKEN_DIM, tiny_spec, unet_shapes

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def matrices(layer=LAYER, width=64, rank=2, down=1.0, up=1.0):
    name = f"lora_unet_{layer.replace('.', '_')}"
    return {
        f"{name}.lora_down.weight": torch.full((rank, width), down),
        f"{name}.lora_up.weight": torch.full((width, rank), up),
    }


def lora_of_peft(x, **settings):
    down, up = matrices().values()
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})}
    return x.lora({f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}, metadata)


# What is wrong -> how it is made, and what is said.
KINDS = {
    "NaN in a LoRA": (lambda x: x.lora(matrices(down=NAN)), FINITE.format("style.safetensors", "NaN")),
    "NaN as a LoRA's alpha": (
        lambda x: x.lora(matrices() | {f"lora_unet_{LAYER.replace('.', '_')}.alpha": torch.tensor(NAN)}),
        FINITE.format("style.safetensors", "NaN"),
    ),
    "a LoRA that is too strong": (
        lambda x: x.lora(matrices(down=1e20, up=1e20)),
        r"expected finite numbers in 'unet/.*' with its LoRAs, got infinity; give them smaller scales",
    ),
    "a LoRA as the source": (
        lambda x: {"source": x.lora(matrices())["loras"][0][0]},
        r"got a LoRA, .*; write --source=BASE --lora=.*:SCALE",
    ),
    "a base model as a LoRA": (
        lambda x: {"source": x.folder, "loras": [(x.file, 1.0)]},
        "expected a LoRA, got Stable Diffusion 1.x in one file.*; correct the path",
    ),
    "a folder as a LoRA": (
        lambda x: {"source": x.folder, "loras": [(x.folder, 1.0)]},
        "expected a weight file at .*model, found none",
    ),
    "a missing LoRA": (
        lambda x: {"source": x.folder, "loras": [(x.path / "gone.safetensors", 1.0)]},
        "expected a weight file at .*gone",
    ),
    "half of a LoRA": (
        lambda x: x.bytes(b"\x10\x00\x00\x00") | {"source": x.folder, "loras": [(x.path / "model.safetensors", 1.0)]},
        DAMAGED + "damaged",
    ),
    "a LoRA for SDXL": (
        lambda x: x.lora(matrices("input_blocks_4_1_transformer_blocks_5_attn1_to_q")),
        "got a LoRA for SDXL in style.safetensors",
    ),
    "a LoRA for Flux": (
        lambda x: x.lora(matrices("double_blocks_0_img_attn_proj")),
        "got a LoRA for a transformer, such as Flux",
    ),
    "a LoRA of other widths": (
        lambda x: x.lora(matrices(width=320)),
        r"expected a weight of shape \(64, 64\), got matrices of \(320, 2\).*another base model",
    ),
    "a LoRA of a deeper model": (
        lambda x: x.lora(matrices(LAYER.replace("mid_block", "down_blocks.3"))),
        r"no layer 'lora_unet_down_blocks_3.*another base model",
    ),
    "a LoHa": (
        lambda x: x.lora({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(1)}),
        r"got a LoHa \(LyCORIS\)",
    ),
    "a LoRA of rank 0": (lambda x: x.lora(matrices(rank=0)), "expected a rank above 0 of .*, got empty matrices; save"),
    "a LoRA with an alpha for each row": (
        lambda x: x.lora(matrices() | {f"lora_unet_{LAYER.replace('.', '_')}.alpha": torch.ones(2)}),
        r"expected one number as '.*alpha', got shape \(2,\)",
    ),
    "half of a LoRA's layer": (
        lambda x: x.lora(dict(list(matrices().items())[:1])),
        "expected both matrices of .*, got no 'up'; the file is incomplete",
    ),
    "one layer twice in a LoRA": (
        lambda x: x.lora(
            matrices()
            | {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 64), f"unet.{LAYER}.lora_B.weight": torch.ones(64, 2)}
        ),
        "are one layer",
    ),
    "a DoRA in PEFT's settings": (
        lambda x: lora_of_peft(x, use_dora=True),
        "expected use_dora of False in PEFT's settings, got True",
    ),
    "an alpha of PEFT that is no number": (
        lambda x: lora_of_peft(x, lora_alpha="eight"),
        "expected a finite number as PEFT's lora_alpha, got 'eight'; ",
    ),
    "an alpha pattern of PEFT that is none": (
        lambda x: lora_of_peft(x, lora_alpha=1, alpha_pattern=["to_q"]),
        r"expected PEFT's alpha_pattern as .*, got \['to_q'\]; ",
    ),
    "an IP-Adapter as the source": (
        lambda x: x.alone({"image_proj.proj.weight": 4, "ip_adapter.1.to_k_ip.weight": 4}),
        r"got an IP-Adapter at .*give it as --config\.init\.adapter=",
    ),
    "a w-plus-adapter as the source": (
        lambda x: x.alone({"w_proj.norm.weight": 4, "wplus_adapter.1.to_k_wplus.weight": 4}),
        r"got a w-plus-adapter at .*--config\.init\.adapter=",
    ),
    "an adapter of ours as the source": (
        lambda x: x.alone({"mapper/norm/scale": 4, "unet/mid_block/attn2/to_k_id/kernel": 4}),
        r"got an adapter of pidiff_jax at .*--config\.init\.adapter=",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_lora_or_an_adapter_as_the_source_is_refused_in_one_line(kind, place):
    make, message = KINDS[kind]
    given = {"output": place.path / "new" / "deep" / "model", **make(place)}
    assert_refused(place, message, lambda: convert(**given))


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e999"])
def test_a_scale_that_is_no_finite_number_is_refused(scale):
    with pytest.raises(
        ValueError, match=f"expected --lora as FILE or FILE:SCALE, got 'a.safetensors:{scale}'; give a finite scale"
    ):
        parse_lora(f"a.safetensors:{scale}", "--lora")


# The adapter of the tests is of this model.
ADAPTED, MAPPER = tiny_spec("decoupled"), MapperSpec(((0, 1), (1, 2)), 8, TOKEN_DIM)


def adapter(x, **changes):
    """An adapter of ours as one file, tensors changed by the start of their names."""
    shapes = {
        "unet": split_identity(unet_shapes(ADAPTED))[1],
        "mapper": nn.meta.unbox(mapper_shapes(IdentityMapper(MAPPER))),
    }
    tensors = {name: torch.ones(leaf.shape) for name, leaf in flatten(shapes).items()}
    for start, change in changes.items():
        name = next(name for name in tensors if name.startswith(start))
        tensors[name] = change(tensors[name])
    path = x.path / "adapter.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def source(given):
    return given["source"]


ADAPTERS = {
    "nothing": (lambda x: x.path / "gone", "expected a model at .*gone, found nothing; check the path"),
    "a base model's folder": (lambda x: x.folder, "expected an adapter's file .*, got a Stable Diffusion folder"),
    "a base model": (
        lambda x: x.file,
        "expected an adapter's file .*, got Stable Diffusion 1.x in one file.*; correct the path",
    ),
    "a LoRA": (
        lambda x: x.lora(matrices())["loras"][0][0],
        "expected an adapter's file .*, got a LoRA at .*; correct the path",
    ),
    "half of a file": (lambda x: source(x.bytes(adapter(x).read_bytes()[:-8])), DAMAGED + "damaged.*; download"),
    "a pickle with code": (
        lambda x: source(pickle_with_code(x, "adapter.bin")),
        r"adapter\.bin, which holds .*open: code that is never run",
    ),
    "another variant": (
        lambda x: source(x.alone({"w_proj.norm.weight": 4, "wplus_adapter.1.to_k_wplus.weight": 4})),
        "'decoupled', got a w-plus-adapter at .*; set config.identity.variant=residual",
    ),
    "an IP-Adapter of CLIP's embeddings": (
        lambda x: source(x.alone({"image_proj.proj.weight": (80, 1024), "ip_adapter.1.to_k_ip.weight": (16, 24)})),
        "expected identity tokens as wide as the text, got ",
    ),
    "NaN": (lambda x: adapter(x, mapper=with_number(NAN)), FINITE.format(r"adapter\.safetensors", "NaN")),
    "infinity": (lambda x: adapter(x, unet=with_number(INFINITY)), FINITE.format(r"adapter\.safetensors", "infinity")),
    "a missing tensor": (
        lambda x: adapter(x, mapper=lambda _: None),
        r"adapter\.safetensors: the weights don't fit this model: missing 'mapper/",
    ),
    "another width": (
        lambda x: adapter(x, unet=lambda t: t[:, :-1].clone()),
        r"'unet/.*': expected shape \(.*\), got \(.*\); check that",
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_training_does_not_start_from_a_wrong_adapter(kind, place):
    make, message = ADAPTERS[kind]
    path = make(place)

    def start():
        check_adapter_file(path, "decoupled")
        load_adapter_file(path, ADAPTED, MAPPER)

    assert_refused(place, message, start)


def run_file(x, facts=None, value=1.0):
    """An adapter file of a quickstart's run, of one tensor."""
    facts = {"num_steps": 1, "seconds_training": 1.0, "fingerprints": {}} if facts is None else facts
    config = json.loads(tiny_config("linear").to_json_best_effort())
    trained = unflatten({"mapper/norm/scale": np.array([1.0, value], np.float32)})
    write_adapter(x.path / "adapter.safetensors", trained, config=config, facts=facts)
    return x.path / "adapter.safetensors"


NO_RUN = "expected the folder of a run or an adapter file of ours at .*, got another file; python -m launch.export"
RUNS = {
    "nothing": (
        lambda x: x.path / "gone",
        "expected the folder of a run, with config.json, at .*gone, found none; give the --workdir of a training",
    ),
    "a base model": (lambda x: x.file, NO_RUN),
    "a folder of a base model": (
        lambda x: x.folder,
        "expected the folder of a run, with config.json, at .*, found none",
    ),
    "a PyTorch file": (lambda x: source(pickle_with_code(x, "adapter.bin")), NO_RUN),
    "an adapter without its config": (adapter, NO_RUN),
    "half of a file": (lambda x: source(x.bytes(run_file(x).read_bytes()[:-4])), DAMAGED + "damaged.*; download"),
    "a pointer of Git LFS": (
        lambda x: source(x.bytes(b"version https://git-lfs.github.com/spec/v1\n")),
        DAMAGED + "a pointer of Git LFS",
    ),
    "an adapter without what was trained on": (
        lambda x: run_file(x, facts={"num_steps": 1}),
        r"expected seconds_training in .*, got pidiff_jax\.facts without it; make",
    ),
    "NaN": (lambda x: run_file(x, value=NAN), FINITE.format(r"adapter\.safetensors", "NaN")),
    "another model's": (
        run_file,
        "expected the parameters that the config trains, got differences at .*; open the run with",
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_wrong_adapter_file_is_not_exported(kind, place):
    make, message = RUNS[kind]
    path = make(place)
    assert_refused(place, message, lambda: export_run(path, place.path / "new" / "out", "safetensors"))
