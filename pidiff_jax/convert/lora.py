"""LoRAs merged into a base model: W + scale * (alpha / rank) * up @ down, for linear layers and convolutions.

Three layouts name the same layers: Kohya's ("lora_unet_down_blocks_0_...lora_down.weight"), PEFT's, which diffusers writes
("unet.down_blocks.0....lora_A.weight"), and that of diffusers before 0.21 ("....processor.to_q_lora.down.weight"). With every
dot as an underscore they agree, which is how a layer is found.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; kohya-ss/sd-scripts networks/lora.py; peft tuners/lora/layer.py.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.clip import clip_table
from pidiff_jax.convert.diffusers_config import read_config
from pidiff_jax.convert.files import naming, open_tensors, read_metadata
from pidiff_jax.convert.lazy_tensors import LazyTensors, finite, in_dtype
from pidiff_jax.convert.original_names import UNET, original_table
from pidiff_jax.convert.recognise import recognise_tensors
from pidiff_jax.convert.stable_diffusion import StableDiffusion
from pidiff_jax.convert.table import Entry
from pidiff_jax.convert.unet import unet_table
from pidiff_jax.locations import local_path
from pidiff_jax.paths import listing
from pidiff_jax.strict_json import parse_json

# The name of a tensor -> layer and role ("A", "down": into the rank; "B", "up": out of it).
_NAMES = (
    r"(?P<layer>.+)\.lora_(?P<role>down|up)\.weight",
    r"(?P<layer>.+)\.lora_(?P<role>A|B)(\.\w+)?\.weight",
    r"(?P<layer>.+)\.lora(_linear_layer)?\.(?P<role>down|up)\.weight",
    r"(?P<layer>.+)\.processor\.(?P<to>to_(q|k|v|out))_lora\.(?P<role>down|up)\.weight",
    r"(?P<layer>.+)\.(?P<role>alpha)",
)
_ROLES = {"A": "down", "B": "up"}
_PREFIXES = (
    ("base_model_model_text_model_", "te_text_model_"), ("base_model_model_encoder_", "te_encoder_"),
    ("base_model_model_", "unet_"),
    ("lora_unet_", "unet_"), ("lora_te1_", "te_"), ("lora_te_", "te_"), ("text_encoder_", "te_"), ("unet_", "unet_"),
    ("", "unet_"),
)  # fmt: skip
_METADATA = "lora_adapter_metadata"  # diffusers' key for PEFT's settings
# Settings of PEFT that change what is computed, with the values that mean "not used".
_UNUSED = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "use_bdlora": (None,),
    "kasa_config": (None,),
    "alora_invocation_tokens": (None,),
}
# Ways of starting a LoRA that take its start out of the base's weights, so that it doesn't fit these weights themselves.
_CHANGE_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


@dataclass
class _Layer:
    """What a file holds for one layer: the names of its tensors."""

    name: str
    tensors: dict[str, str] = field(default_factory=dict)


def parse_lora(text: str, what: str) -> tuple[Path, float]:
    """File and scale of "FILE:SCALE", or of "FILE", whose scale is 1; `what` names the flag or key in errors.

    Raises:
        ValueError: the scale is no finite number, or the path can't be one.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected {what} as texts, FILE or FILE:SCALE, got {text!r}; write it in quotes")
    file, colon, number = text.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:  # a colon of the path
        file, scale = text, 1.0
    if not math.isfinite(scale):
        raise ValueError(f"expected {what} as FILE or FILE:SCALE, got {text!r}; give a finite scale, such as 0.8")
    return local_path(file if colon and file else text, what), scale


def with_loras(model: StableDiffusion, loras: Sequence[tuple[Path, float]]) -> StableDiffusion:
    """The model with LoRAs merged in, each at its scale, in the order given; a weight is merged when it is read.

    Sums are float32 whatever the weights are stored in.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that is no LoRA, one of a form that isn't implemented (LoHa, LoKr, DoRA), or one of another model:
            names what doesn't fit.
    """
    if not loras:
        return model
    targets = _targets(model)
    found = [(_open(path, model, targets), scale) for path, scale in loras]

    def read() -> LazyTensors:
        base = model.read()

        def merged(path: str) -> np.ndarray:
            array = base.read(path)
            with np.errstate(over="ignore", invalid="ignore"):
                deltas = [delta(path) * np.float32(scale) for delta, scale in found if path in delta.layers]
                if not deltas:
                    return array
                changed = sum(deltas, array.astype(np.float32))
            finite(changed, f"{path!r} with its LoRAs", "give them smaller scales")
            return in_dtype(changed, array.dtype, path)

        return LazyTensors(base.structs, merged)

    return replace(model, read=read)


@dataclass(frozen=True)
class _Deltas:
    """What a LoRA adds to the weights of a model at scale 1, in our layout.

    layers: our path -> names of its tensors. factors: our path -> alpha / rank.
    """

    tensors: LazyTensors
    targets: Mapping[str, Entry]
    layers: Mapping[str, _Layer]
    factors: Mapping[str, float]

    def __call__(self, path: str) -> np.ndarray:
        names, entry = self.layers[path].tensors, self.targets[path]
        down, up = (self.tensors.read(names[role]).astype(np.float32) for role in ("down", "up"))
        delta = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return entry.layout.to_ours(delta.reshape(_foreign_shape(entry))) * np.float32(self.factors[path])


def _open(path: Path, model: StableDiffusion, targets: Mapping[str, Entry]) -> _Deltas:
    tensors = open_tensors(path)
    with naming(path):
        found = recognise_tensors(tensors, path.name)
        if found.kind != "lora":
            raise ValueError(f"expected a LoRA, got {found.title}; correct the path")
        by_layer = _by_layer(tensors)
        settings = _settings(path, by_layer)
        by_path = {entry.ours: entry for entry in targets.values()}
        layers: dict[str, _Layer] = {}
        factors: dict[str, float] = {}
        problems = []
        for key, layer in by_layer.items():
            entry = targets.get(_target_name(key))
            if entry is None:
                problems.append(f"no layer {layer.name!r} in the model")
            elif entry.ours in layers:
                problems.append(f"{layer.name!r} and {layers[entry.ours].name!r} are one layer")
            elif problem := _shape_problem(tensors, layer, entry):
                problems.append(problem)
            else:
                layers[entry.ours] = layer
                rank = tensors.structs[layer.tensors["down"]].shape[0]
                factors[entry.ours] = _factor(settings, layer.name, _alpha(tensors, layer), rank)
        if problems:
            raise ValueError(f"the LoRA doesn't fit {model.path}: {listing(problems)}; it is of another base model")
    return _Deltas(tensors, by_path, layers, factors)


def _by_layer(tensors: LazyTensors) -> dict[str, _Layer]:
    """Layer, with underscores -> its tensors."""
    layers: dict[str, _Layer] = {}
    unknown = []
    for name in tensors:
        match = next((match for pattern in _NAMES if (match := re.fullmatch(pattern, name))), None)
        if match is None:
            unknown.append(name)
            continue
        groups = match.groupdict()
        to = groups.get("to")
        layer = groups["layer"] + (f".{to}{'.0' if to == 'to_out' else ''}" if to else "")
        own = layers.setdefault(layer.replace(".", "_"), _Layer(layer))
        role = _ROLES.get(groups["role"], groups["role"])
        if role in own.tensors:
            raise ValueError(f"expected one {role!r} of {layer!r}, got {own.tensors[role]!r} and {name!r}; remove one")
        own.tensors[role] = name
    if unknown:
        raise ValueError(f"expected tensors of a LoRA only, got {listing(unknown)}; other forms aren't implemented")
    for layer_ in layers.values():
        if missing := sorted({"down", "up"} - set(layer_.tensors)):
            raise ValueError(
                f"expected both matrices of {layer_.name!r}, got no {missing[0]!r}; the file is incomplete"
            )
    return layers


def _target_name(key: str) -> str:
    prefix, part = next((old, new) for old, new in _PREFIXES if key.startswith(old))
    return part + key[len(prefix) :]


def _targets(model: StableDiffusion) -> dict[str, Entry]:
    """Every weight that a LoRA may change, by part and name with underscores; the UNet's by their original names too."""
    named = [
        ("unet_", entry.foreign, replace(entry, ours=f"unet/{entry.ours}")) for entry in unet_table(model.unet_spec)
    ]
    for entry in clip_table(model.text_spec):
        ours = replace(entry, ours=f"text_encoder/{entry.ours}")
        named += [("te_", entry.foreign, ours), ("te_", entry.foreign.removeprefix("text_model."), ours)]
    original = original_table(model.unet_spec, model.vae_spec, model.text_spec, open_clip=False)
    named += [
        ("unet_", entry.foreign.removeprefix(UNET), entry) for entry in original if entry.foreign.startswith(UNET)
    ]
    suffix = ".weight"
    return {
        part + name.removesuffix(suffix).replace(".", "_"): entry
        for part, name, entry in named
        if name.endswith(suffix) and len(entry.shape) in (2, 4)
    }


def _foreign_shape(entry: Entry) -> tuple[int, ...]:
    return entry.layout.to_foreign(np.broadcast_to(np.zeros((), np.int8), entry.shape)).shape


def _shape_problem(tensors: LazyTensors, layer: _Layer, entry: Entry) -> str | None:
    down, up = (tensors.structs[layer.tensors[role]].shape for role in ("down", "up"))
    outputs, *inputs = _foreign_shape(entry)
    fits = len(down) > 1 and len(up) > 1 and math.prod(down[1:]) == math.prod(inputs)
    # A convolution of 1x1 may come as a linear layer and the other way round; a wider one must be as wide as the base's.
    fits = fits and (len(down) == len(inputs) + 1 or math.prod(inputs[1:]) == 1)
    if fits and up[0] == outputs and up[1] == down[0] and math.prod(up[2:]) == 1:
        return None
    return f"{layer.name!r}: expected a weight of shape {(outputs, *inputs)}, got matrices of {tuple(up)} and {tuple(down)}"


def _alpha(tensors: LazyTensors, layer: _Layer) -> float | None:
    """The alpha of a layer that a file itself holds."""
    if (name := layer.tensors.get("alpha")) is None:
        return None
    if math.prod(shape := tensors.structs[name].shape) != 1:
        raise ValueError(f"expected one number as {name!r}, got shape {tuple(shape)}; other forms aren't implemented")
    return float(tensors.read(name).item())


def _settings(path: Path, layers: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """PEFT's settings by the names' prefix, of a config beside the file or of diffusers' metadata in it; none is fine.

    Raises:
        ValueError: a file of PEFT without its config, which alone says alpha; a setting that isn't implemented.
    """
    settings: dict[str, Mapping[str, Any]] = {}
    if any(layer.startswith("base_model_model_") for layer in layers):
        config = path.parent / "adapter_config.json"
        if not config.is_file():
            raise ValueError(
                f"expected PEFT's adapter_config.json, which says alpha, beside it at {config}; copy it too"
            )
        settings["base_model.model."] = read_config(config)
    elif path.suffix == ".safetensors" and (text := read_metadata(path).get(_METADATA)):
        try:
            written = dict(parse_json(text))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                f"expected JSON as {_METADATA}, each key once, got something else; save the LoRA again"
            ) from None
        for part in ("unet.", "text_encoder."):
            settings[part] = {k.removeprefix(part): v for k, v in written.items() if k.startswith(part)}
    for own in settings.values():
        for key, values in _UNUSED.items():
            if own.get(key) not in values:
                raise ValueError(
                    f"expected {key} of {values[0]!r} in PEFT's settings, got {own[key]!r}; not implemented"
                )
        if str(start := own.get("init_lora_weights")).lower().startswith(_CHANGE_BASE):
            raise ValueError(
                f"expected a LoRA for the base model's weights, got init_lora_weights of {start!r}, which changes them; save "
                "it with PEFT's path_initial_model_for_weight_conversion"
            )
    return settings


def _factor(settings: Mapping[str, Mapping[str, Any]], name: str, alpha: float | None, rank: int) -> float:
    """alpha / rank; alpha of the file itself, else of PEFT's settings, else the rank."""
    prefix = next((prefix for prefix in settings if name.startswith(prefix)), None)
    own = settings[prefix] if prefix is not None else {}
    if not rank:
        raise ValueError(f"expected a rank above 0 of {name!r}, got empty matrices; save the LoRA again")
    if alpha is None:
        alpha = _alpha_of_settings(own, name.removeprefix(prefix or ""))
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _alpha_of_settings(own: Mapping[str, Any], name: str) -> float | None:
    alpha, patterns = own.get("lora_alpha"), own.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(
            f"expected PEFT's alpha_pattern as an alpha for each pattern, got {patterns!r}; save the LoRA again"
        )
    try:  # the first that matches counts, as in PEFT
        found = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name))
        alpha = next(found, alpha)
    except re.error as error:
        raise ValueError(
            f"expected regular expressions in PEFT's alpha_pattern, got one with {error}; save the LoRA again"
        ) from None
    if alpha is None:
        return None
    if isinstance(alpha, int | float) and math.isfinite(alpha):
        return float(alpha)
    raise ValueError(f"expected a finite number as PEFT's lora_alpha, got {alpha!r}; save the LoRA again")
