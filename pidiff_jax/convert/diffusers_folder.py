"""A Stable Diffusion folder in diffusers' format: opened as a whole, its weights loaded together or part by part."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from pidiff_jax.convert import diffusers_config as configs
from pidiff_jax.convert.clip import clip_lazily
from pidiff_jax.convert.clip_tokenizer import load_tokenizer
from pidiff_jax.convert.files import naming, open_tensors, read_shard_index
from pidiff_jax.convert.lazy_tensors import LazyTensors, joined
from pidiff_jax.convert.recognise import recognise
from pidiff_jax.convert.stable_diffusion import StableDiffusion
from pidiff_jax.convert.table import ours_lazily
from pidiff_jax.convert.unet import unet_table
from pidiff_jax.convert.vae import vae_lazily
from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec
from pidiff_jax.paths import unflatten

# Weight files of each part without their suffixes, the usual name first.
_STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Parts of a pipeline that drawing a picture doesn't need.
_UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")


def open_diffusers_folder(path: Path | str, *, variant: str | None = None) -> StableDiffusion:
    """Opens a Stable Diffusion 1.x or 2.x folder as `save_pretrained` of diffusers writes it; reads no weights.

    Args:
        path: folder with model_index.json.
        variant: reads `*.<variant>.safetensors` (for example "fp16") instead of the plain files; None reads a part's only
            variant where it has no plain files.

    Raises:
        FileNotFoundError: lists every missing config file.
        ValueError: a pipeline of another kind, a part or a config field that isn't implemented, or parts that don't fit each
            other.
    """
    path = Path(path)
    _check_pipeline(path)
    _raise_missing(path, _missing_configs(path))
    _check_classes(path / "model_index.json")
    unet_config, unet_source = _config(path / "unet")
    unet_spec = configs.unet_spec(unet_config, unet_source)
    vae_spec = configs.vae_spec(*_config(path / "vae"))
    text_spec = configs.text_spec(*_config(path / "text_encoder"))
    schedule = configs.schedule_settings(*_config(path / "scheduler", "scheduler_config.json"))
    tokenizer = load_tokenizer(path / "tokenizer")
    _check_parts(path, unet_spec, vae_spec, text_spec, tokenizer)
    latent_size = configs.latent_size(unet_config, unet_source)
    read = partial(_read_folder, path, variant, unet_spec, vae_spec, text_spec)
    return StableDiffusion(path, unet_spec, vae_spec, text_spec, tokenizer, schedule, latent_size, read)


def load_vae(folder: Path, variant: str | None = None, dtype: Any = np.float32) -> tuple[VAESpec, dict[str, Any]]:
    """Spec and parameters of a folder with an `AutoencoderKL`."""
    spec = configs.vae_spec(*_config(folder))
    file = weight_file(folder, _STEMS["vae"], variant)
    tensors = open_tensors(file).cast(dtype)
    with naming(file):
        return spec, unflatten(dict(vae_lazily(spec, tensors)))


def _read_folder(path: Path, variant: str | None, unet: UNetSpec, vae: VAESpec, text: ClipTextSpec) -> LazyTensors:
    check_files(path, variant)
    converters: dict[str, Callable[[LazyTensors], LazyTensors]] = {
        "unet": lambda tensors: ours_lazily(unet_table(unet), tensors),
        "vae": partial(vae_lazily, vae),
        "text_encoder": partial(clip_lazily, text),
    }
    parts = {}
    for part, convert in converters.items():
        file = weight_file(path / part, _STEMS[part], variant)
        tensors = open_tensors(file)
        with naming(file):
            parts[part] = convert(tensors)
    return joined(parts)


def noise_schedule(settings: configs.ScheduleSettings) -> NoiseSchedule:
    """The noise schedule that the model was trained with."""
    if settings.beta_schedule == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(settings.num_train_timesteps)
    else:
        make = NoiseSchedule.linear if settings.beta_schedule == "linear" else NoiseSchedule.scaled_linear
        schedule = make(settings.beta_start, settings.beta_end, settings.num_train_timesteps)
    return schedule.zero_terminal_snr() if settings.rescale_betas_zero_snr else schedule


def check_files(path: Path, variant: str | None = None) -> None:
    """Looks whether every file of a Stable Diffusion folder is there.

    Raises:
        FileNotFoundError: lists those that are missing.
        ValueError: a pipeline of another kind.
    """
    _check_pipeline(path)
    missing = _missing_configs(path)
    for part, stems in _STEMS.items():
        try:
            file = weight_file(path / part, stems, variant)
        except FileNotFoundError as error:
            missing.append(str(error))
            continue
        shards = sorted(set(read_shard_index(file).values())) if file.suffix == ".json" else []
        missing += [f"{part}/{shard}" for shard in shards if not (path / part / shard).is_file()]
    _raise_missing(path, missing)


def _check_pipeline(path: Path) -> None:
    """Refuses a pipeline of another kind by its name, before its other parts look like missing or wrong ones."""
    if (path / "model_index.json").is_file():
        recognise(path)


def _missing_configs(path: Path) -> list[str]:
    singles = ["model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _STEMS)]
    missing = [name for name in singles if not (path / name).is_file()]
    if not any((path / "tokenizer" / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        missing.append("tokenizer/vocab.json with merges.txt")
    return missing


def _raise_missing(path: Path, missing: list[str]) -> None:
    if missing:
        raise FileNotFoundError(
            f"expected a Stable Diffusion folder in diffusers' format at {path}, missing {', '.join(missing)}; "
            "download the whole repository or correct the path"
        )


def weight_file(folder: Path, stems: tuple[str, ...], variant: str | None = None) -> Path:
    """The weight file or shard index of a part: safetensors before PyTorch, whole before sharded.

    variant: which one, such as "fp16"; None: the plain files, or the only variant if there are no plain ones.

    Raises:
        FileNotFoundError: none is there; the message is the missing file, and what there is instead.
    """
    available = _variants(folder, stems)
    if variant is None and len(available) == 1:
        variant = available[0]
    dot = f".{variant}" if variant else ""
    for ending in (f"{dot}.safetensors", f".safetensors.index{dot}.json", f"{dot}.bin", f".bin.index{dot}.json"):
        for stem in stems:
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
    hint = ""
    if available == [""]:
        hint = " (there are only the plain files: leave the variant out)"
    elif names := [name for name in available if name]:
        plain = "the plain files and " if "" in available else ""
        hint = (
            f" (there are {plain}the variants {', '.join(names)}: choose one, as variant={names[0]!r}, "
            f"--config.base.variant={names[0]} of a training or --variant={names[0]} of launch.prepare and launch.convert)"
        )
    raise FileNotFoundError(f"{folder.name}/{stems[0]}{dot}.safetensors{hint}")


def _variants(folder: Path, stems: tuple[str, ...]) -> list[str]:
    """The variants in which a part's weights are there; "" stands for the plain files."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    stem = f"(?:{'|'.join(stems)})"
    pattern = re.compile(
        rf"{stem}(?:\.(?P<whole>\w+))?\.(?:safetensors|bin)|{stem}\.(?:safetensors|bin)\.index(?:\.(?P<shards>\w+))?\.json"
    )
    found = [match for name in names if (match := pattern.fullmatch(name))]
    return sorted({match["whole"] or match["shards"] or "" for match in found})


def _config(folder: Path, name: str = "config.json") -> tuple[dict[str, Any], str]:
    return configs.read_config(folder / name), str(folder / name)


def _check_classes(index: Path) -> None:
    """Refuses pipelines with parts of other classes, or with parts that we would leave out."""
    problems = []
    for part, value in configs.read_config(index).items():
        kind = value[1] if isinstance(value, list) and len(value) == 2 else None
        if kind is None or part in _UNUSED_PARTS or part == "scheduler":
            continue
        if part not in _CLASSES:
            problems.append(f"expected no part {part!r}, got a {kind}")
        elif kind not in _CLASSES[part]:
            problems.append(f"expected {part} of class {' or '.join(_CLASSES[part])}, got {kind}")
    if problems:
        raise ValueError(f"{index}: {'; '.join(problems)}; Stable Diffusion 1.x and 2.x are implemented")


def _check_parts(path: Path, unet: UNetSpec, vae: VAESpec, text: ClipTextSpec, tokenizer: CLIPTokenizer) -> None:
    pairs = (
        ("unet in_channels", unet.in_channels, "the VAE's latent_channels", vae.latent_channels),
        ("unet out_channels", unet.out_channels, "the VAE's latent_channels", vae.latent_channels),
        ("unet cross_attention_dim", unet.cross_attention_dim, "the text encoder's hidden_size", text.width),
        ("tokenizer model_max_length", tokenizer.model_max_length, "the text encoder's positions", text.max_length),
    )
    problems = [f"expected {name} {want} as {what}, got {value}" for name, value, what, want in pairs if value != want]
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > text.vocab_size:  # rows beyond the tokens do no harm
        problems.append(
            f"expected a text encoder with a row for each of {tokens} tokens, got vocab_size {text.vocab_size}"
        )
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}; the parts are of different models")
