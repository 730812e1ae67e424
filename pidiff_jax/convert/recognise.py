"""What a file or folder of others holds, told by names and shapes alone; what isn't supported is refused by its name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidiff_jax.convert.diffusers_config import read_config
from pidiff_jax.convert.files import TORCH_SUFFIXES, open_tensors
from pidiff_jax.convert.lazy_tensors import LazyTensors

SUPPORTED = (
    "Stable Diffusion 1.x and 2.x (a diffusers folder or one file), LoRAs for them, IP-Adapters on W+, w-plus-adapter, e4e, "
    "StyleGAN2 (rosinality) and ArcFace (IR-SE50)"
)
_UNET = "model.diffusion_model."
_FIRST_CONV = f"{_UNET}input_blocks.0.0.weight"
# Input channels of the first convolution -> whose they are.
_INPUTS = {
    9: "Stable Diffusion inpainting", 8: "InstructPix2Pix", 7: "the Stable Diffusion upscaler", 5: "Stable Diffusion 2 depth",
}  # fmt: skip
# Regexes of names that are in files of one kind only, and what these are.
_REFUSED = (
    (r"(.*\.)?(joint_blocks|joint_transformer_blocks)\.\d+\..*", "Stable Diffusion 3"),
    (r"(.*\.)?double_blocks\.\d+\..*", "Flux, or a model of its kind"),
    (r"lora_te2_.*|lora_unet_input_blocks_.*_transformer_blocks_[2-9]_.*", "a LoRA for SDXL"),
    (r"text_encoder_2\..*", "a LoRA for SDXL"),
    (r"lora_unet_(double|single|joint)_blocks_.*|(diffusion_model|transformer)\..*lora_(A|B|down|up).*",
     "a LoRA for a transformer, such as Flux or Stable Diffusion 3"),
    (r"conditioner\.embedders\.0\.model\.transformer\..*", "the SDXL refiner"),
    (r"conditioner\.embedders\..*", "SDXL"),
    (r"control_model\..*|input_hint_block\..*|controlnet_cond_embedding\..*", "a ControlNet"),
    (r".*\.hada_w\d.*", "a LoHa (LyCORIS)"),
    (r".*\.lokr_w\d.*", "a LoKr (LyCORIS)"),
    (r".*\.(dora_scale|lora_magnitude_vector.*)", "a DoRA"),
    (r".*\.lora_mid\.weight", "a LoCon with a CP decomposition (LyCORIS)"),
    (r"string_to_param\..*|emb_params", "a textual inversion"),
    (r".*\.motion_modules\..*", "AnimateDiff"),
)  # fmt: skip
_LORA = r".*[._]lora([._](A|B|down|up)(\.[^.]+)?\.weight|_linear_layer\.(down|up)\.weight)"


@dataclass(frozen=True)
class Found:
    """What was recognised.

    kind: "diffusers_folder", "single_file", "lora", "adapter" (ours), "ip_adapter", "wplus_adapter", "e4e", "stylegan2" or
        "arcface".
    title: the same for people.
    """

    kind: str
    title: str


def recognise(path: Path | str) -> Found:
    """Looks at a folder's index, or at the names and shapes in a weight file; reads no weights.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: something else; says what it is where that can be told, and what is supported.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"expected a model at {path}, found nothing; check the path")
    tensors = open_tensors(path)
    if not tensors:
        raise ValueError(f"expected a model in {path}, got a file without tensors; {_remedy()}")
    return recognise_tensors(tensors, path)


def recognise_tensors(tensors: LazyTensors, source: Path | str) -> Found:
    """`recognise` for the tensors of a weight file, which `source` names in errors."""
    shapes = {name.removeprefix("state_dict."): tuple(struct.shape) for name, struct in tensors.structs.items()}
    for pattern, title in _REFUSED:
        if _any(pattern, shapes):
            raise ValueError(f"expected a model that is supported, got {title} in {source}; {_remedy()}")
    if _FIRST_CONV in shapes:
        return _single_file(shapes, source)
    if _any(_LORA, shapes):
        return Found("lora", "a LoRA")
    if found := _faces(shapes, tensors):
        return found
    if _any(r"unet/.*_id/kernel", shapes) and _starts(shapes, "mapper/"):
        return Found("adapter", "an adapter of pidiff_jax")
    if _starts(shapes, "w_proj.") and _starts(shapes, "wplus_adapter."):
        return Found("wplus_adapter", "a w-plus-adapter")
    if _starts(shapes, "image_proj.") and _starts(shapes, "ip_adapter."):
        return Found("ip_adapter", "an IP-Adapter")
    if hint := _part(shapes):
        raise ValueError(f"expected a whole model, got {hint} in {source}; {_remedy()}")
    raise ValueError(
        f"expected a model that is supported, got {len(shapes)} tensors that none has, such as {min(shapes)!r}, in {source}; "
        f"{_remedy()}"
    )


def _folder(path: Path) -> Found:
    index = path / "model_index.json"
    if index.is_file():
        kind = read_config(index).get("_class_name")
        kind = kind[-1] if isinstance(kind, list) and kind else kind  # with the file of a pipeline of the author's own
        if isinstance(kind, str) and not kind.startswith(("StableDiffusionPipeline", "StableDiffusionImg2Img")):
            raise ValueError(f"expected a StableDiffusionPipeline in {path}, got a {kind}; {_remedy()}")
        return Found("diffusers_folder", "a Stable Diffusion folder in diffusers' format")
    files = sorted(x.name for x in path.iterdir() if x.suffix in (".safetensors", *TORCH_SUFFIXES))
    hint = f"name one of its files, such as {path / files[0]}" if files else "check the path"
    raise ValueError(f"expected a folder with model_index.json, or a file, got the folder {path} without one; {hint}")


def _single_file(shapes: Mapping[str, tuple[int, ...]], source: Path | str) -> Found:
    channels = shapes[_FIRST_CONV][1] if len(shapes[_FIRST_CONV]) == 4 else 4
    if channels in _INPUTS:
        raise ValueError(
            f"expected 4 input channels of the UNet, got {channels}, which is {_INPUTS[channels]}, in {source}; {_remedy()}"
        )
    if _any(r"model\.diffusion_model\.label_emb\..*", shapes):
        raise ValueError(f"expected a model that is supported, got a UNet of SDXL in {source}; {_remedy()}")
    for version, prefix in (("1.x", "cond_stage_model.transformer."), ("2.x", "cond_stage_model.model.")):
        if _starts(shapes, prefix):
            return Found("single_file", f"Stable Diffusion {version} in one file, with its original names")
    raise ValueError(
        f"expected a UNet, an autoencoder and a text encoder, got no cond_stage_model in {source}; take the file of the "
        "whole model"
    )


def _faces(shapes: Mapping[str, Any], tensors: LazyTensors) -> Found | None:
    if "encoder.input_layer.0.weight" in shapes and "latent_avg" in tensors:
        return Found("e4e", "an e4e encoder")
    if any(f"{prefix}input.input" in shapes for prefix in ("g_ema.", "decoder.", "")):
        return Found("stylegan2", "a StyleGAN2 generator (rosinality's layout)")
    if "input_layer.0.weight" in shapes and "output_layer.3.weight" in shapes:
        return Found("arcface", "an ArcFace recogniser (IR-SE)")
    return None


def _part(shapes: Mapping[str, Any]) -> str | None:
    if _any(r"down_blocks\.0\.resnets\.0\..*", shapes):
        return "the UNet of a diffusers folder alone (name the folder with model_index.json)"
    if _any(r"(first_stage_model\.)?encoder\.(down|down_blocks)\.0\..*", shapes):
        return "an autoencoder alone"
    if _any(r"text_model\.encoder\.layers\.0\..*", shapes):
        return "a text encoder alone"
    return None


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _remedy() -> str:
    return f"supported are {SUPPORTED}"
