"""The config files of a diffusers folder, read into our specs; a setting we don't implement is refused, not ignored.

A field that is unknown here, of a newer diffusers or of somebody's own, is accepted if its value is null: diffusers means
"not used" by it. Any other value may change what the model is, so it is refused, a scheduler's too: a field that only
samplers read is listed here, or can be deleted from the file.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pidiff_jax.convert.files import naming
from pidiff_jax.diffusion.samplers import Spacing
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec
from pidiff_jax.strict_json import parse_json

Config = Mapping[str, Any]

_PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

# Diffusers' defaults of the fields that are read; the types of their values are those that a file must have.
_UNET_DEFAULTS = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "attention_head_dim": 8, "cross_attention_dim": 1280, "use_linear_projection": False,
    "transformer_layers_per_block": 1, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
# Fields that select what we don't implement, with the values that mean "not used".
_UNET_FIXED = {
    "act_fn": ("silu", "swish"), "addition_embed_type": (None,), "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,), "attention_type": ("default",), "center_input_sample": (False,),
    "class_embed_type": (None,), "class_embeddings_concat": (False,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "cross_attention_norm": (None,), "downsample_padding": (1,), "dropout": (0,), "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "flip_sin_to_cos": (True,), "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "norm_eps": (1e-5,),
    "num_class_embeds": (None,), "only_cross_attention": (False,), "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1,), "resnet_skip_time_act": (False,), "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,), "time_cond_proj_dim": (None,), "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,), "time_embedding_type": ("positional",), "timestep_post_act": (None,),
}  # fmt: skip
# Our attention logits and softmax are float32 whatever the compute type, which covers `upcast_attention`.
_UNET_IGNORED = ("sample_size", "upcast_attention", "num_attention_heads")
# Fields that may be one value for all levels or a list with each level's own.
_PER_LEVEL = ("attention_head_dim", "transformer_layers_per_block", "only_cross_attention")
_DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}

_VAE_DEFAULTS = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (64,), "layers_per_block": 1, "latent_channels": 4,
    "norm_num_groups": 32, "scaling_factor": 0.18215, "mid_block_add_attention": True,
    "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
}  # fmt: skip
_VAE_FIXED = {
    "act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,), "shift_factor": (None,),
    "use_post_quant_conv": (True,), "use_quant_conv": (True,),
}  # fmt: skip
_VAE_IGNORED = ("sample_size", "force_upcast")

_TEXT_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT_FIXED = {
    "attention_dropout": (0,), "dropout": (0,), "layer_norm_eps": (1e-5,), "model_type": ("clip_text_model",),
}  # fmt: skip
# Token ids serve transformers' pooling, which Stable Diffusion doesn't read; padding is the tokenizer's business; the
# rest says what a call returns, or how transformers' text generators draw words.
_TEXT_IGNORED = (
    "architectures", "bos_token_id", "dtype", "eos_token_id", "initializer_factor", "initializer_range", "pad_token_id",
    "projection_dim", "torch_dtype", "transformers_version",
    "add_cross_attention", "attn_implementation", "chunk_size_feed_forward", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "id2label", "is_decoder", "is_encoder_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "top_k", "top_p", "torchscript", "typical_p",
    "use_bfloat16", "use_cache",
)  # fmt: skip

_K_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT_BETAS = _K_BETAS | {"beta_schedule": "scaled_linear"}
_SCHEDULE_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "timestep_spacing": "leading", "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
}  # fmt: skip
# Schedulers whose noise is that of the betas in their config; the value holds their own defaults. The others
# (flow matching, EDM, variance exploding, consistency, discrete states, shifted betas, unCLIP's two stages, ...) don't.
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMInverseScheduler": {}, "DDIMParallelScheduler": {}, "DDIMScheduler": {}, "DDPMParallelScheduler": {},
    "DDPMScheduler": {},
    "DEISMultistepScheduler": {}, "DPMSolverMultistepInverseScheduler": {}, "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": _K_BETAS, "DPMSolverSinglestepScheduler": {}, "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {}, "HeunDiscreteScheduler": _K_BETAS, "KDPM2AncestralDiscreteScheduler": _K_BETAS,
    "KDPM2DiscreteScheduler": _K_BETAS, "LCMScheduler": _LATENT_BETAS, "LMSDiscreteScheduler": {}, "PNDMScheduler": {},
    "RePaintScheduler": {}, "SASolverScheduler": {}, "TCDScheduler": _LATENT_BETAS, "UniPCMultistepScheduler": {},
}  # fmt: skip
# A continuous `timestep_type` gives the network noise levels instead of step numbers; `predict_epsilon` is an old field.
_SCHEDULE_FIXED = {
    "trained_betas": (None,), "thresholding": (False,), "use_flow_sigmas": (False,),
    "timestep_type": ("discrete",), "predict_epsilon": (True,),
}  # fmt: skip
# Diffusers' pipeline switches `clip_sample` off and sets `steps_offset` to 1 whatever the file says; the others tune
# samplers and say nothing about the trained model.
_SCHEDULE_IGNORED = (
    "clip_sample", "steps_offset", "algorithm_type", "clip_sample_range", "corrector_order", "disable_corrector",
    "dynamic_thresholding_ratio", "eta", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type",
    "lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "original_inference_steps", "predict_x0",
    "predictor_order", "sample_max_value", "shift_terminal", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order",
    "solver_p", "solver_type", "tau_func", "tensor_format", "time_shift_type", "timestep_scaling", "use_beta_sigmas",
    "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
)  # fmt: skip


@dataclass(frozen=True)
class ScheduleSettings:
    """What a scheduler's config says about the trained model, and about DDIM sampling as diffusers' pipeline does it.

    prediction_type: "eps", "v" or "x0". beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
    """

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    prediction_type: str
    rescale_betas_zero_snr: bool
    timestep_spacing: Spacing
    set_alpha_to_one: bool
    steps_offset: int = 1


def read_config(path: Path | str) -> dict[str, Any]:
    """Reads a JSON object, with or without a byte order mark.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        config = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        match error:
            case json.JSONDecodeError():
                place = f" at line {error.lineno}"
            case UnicodeDecodeError():
                place = ": it isn't UTF-8"
            case _:
                place = f": {error}"
        raise ValueError(f"expected JSON in {path}, got a mistake{place}; download or copy it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"expected a JSON object in {path}, got a {type(config).__name__}; download or copy it again")
    return config


def unet_spec(config: Config, source: str = "unet/config.json") -> UNetSpec:
    """The spec of a `UNet2DConditionModel`, without identity branch; `source` names the config in errors.

    Raises:
        ValueError: a field or a value that this UNet doesn't implement, or a value of another type.
    """
    with naming(source):
        values = _read(config, "UNet2DConditionModel", _UNET_DEFAULTS, _UNET_FIXED, _UNET_IGNORED)
        heads = config.get("num_attention_heads")
        if heads is not None and _as_tuple(heads) != values["attention_head_dim"]:
            raise ValueError(
                f"expected num_attention_heads null or as attention_head_dim, {values['attention_head_dim']}, got {heads}; "
                "diffusers reads the number of heads from attention_head_dim: correct the config"
            )
        down_blocks, up_blocks = values["down_block_types"], values["up_block_types"]
        known = all(name in _DOWN_BLOCKS for name in down_blocks)
        down_attention = tuple(_DOWN_BLOCKS[name] for name in down_blocks) if known else ()
        if not known or tuple(_UP_BLOCKS.get(name) for name in up_blocks) != down_attention[::-1]:
            raise ValueError(
                f"expected down_block_types of {sorted(_DOWN_BLOCKS)} and up_block_types that mirror them, got "
                f"{down_blocks} and {up_blocks}; other blocks aren't implemented"
            )
        return UNetSpec(
            in_channels=values["in_channels"],
            out_channels=values["out_channels"],
            block_out_channels=values["block_out_channels"],
            layers_per_block=values["layers_per_block"],
            down_attention=down_attention,
            num_heads=values["attention_head_dim"],  # a misnomer in diffusers: the number of heads
            cross_attention_dim=values["cross_attention_dim"],
            use_linear_projection=values["use_linear_projection"],
            transformer_depth=values["transformer_layers_per_block"],
            norm_num_groups=values["norm_num_groups"],
        )


def latent_size(config: Config, source: str = "unet/config.json") -> tuple[int, int]:
    """Height and width of the latents that a `UNet2DConditionModel` was made for; 64 each where its config has none.

    Raises:
        ValueError: `sample_size` is neither a number nor a pair of them.
    """
    size = config.get("sample_size")
    size = 64 if size is None else size
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{source}: expected a sample_size like 64 or [64, 64], got {size!r}; correct it")
    return pair


def vae_spec(config: Config, source: str = "vae/config.json") -> VAESpec:
    """The spec of an `AutoencoderKL`."""
    with naming(source):
        values = _read(config, "AutoencoderKL", _VAE_DEFAULTS, _VAE_FIXED, _VAE_IGNORED)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            expected = (kind,) * len(values["block_out_channels"])
            if values[name] != expected:
                raise ValueError(f"expected {name} {expected}, got {values[name]}; such a VAE isn't implemented")
        if values["in_channels"] != values["out_channels"]:
            raise ValueError(
                f"expected as many in_channels as out_channels, got {values['in_channels']} and "
                f"{values['out_channels']}; such a VAE isn't implemented"
            )
        return VAESpec(
            block_out_channels=values["block_out_channels"],
            layers_per_block=values["layers_per_block"],
            latent_channels=values["latent_channels"],
            norm_num_groups=values["norm_num_groups"],
            scaling_factor=values["scaling_factor"],
            in_channels=values["in_channels"],
            mid_attention=values["mid_block_add_attention"],
        )


def text_spec(config: Config, source: str = "text_encoder/config.json") -> ClipTextSpec:
    """The spec of a `CLIPTextModel`."""
    with naming(source):
        if config.get("architectures") not in (None, ["CLIPTextModel"]):
            raise ValueError(
                f"expected architectures ['CLIPTextModel'], got {config['architectures']}; only this encoder is "
                "implemented"
            )
        values = _read(config, None, _TEXT_DEFAULTS, _TEXT_FIXED, _TEXT_IGNORED)
        return ClipTextSpec(
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            mlp_width=values["intermediate_size"],
            max_length=values["max_position_embeddings"],
            activation=values["hidden_act"],
        )


def schedule_settings(config: Config, source: str = "scheduler/scheduler_config.json") -> ScheduleSettings:
    """The settings of any of diffusers' schedulers for models of Stable Diffusion's kind.

    Only what the noise schedule and DDIM sampling need is read; fields of other samplers are ignored.

    Raises:
        ValueError: a scheduler of another process, or a field that changes the schedule or isn't known.
    """
    with naming(source):
        kind = str(config.get("_class_name", "DDIMScheduler")).removeprefix("Flax")
        if kind not in _SCHEDULERS:
            raise ValueError(
                f"expected a scheduler with the betas of a DDPM, such as DDIMScheduler, got {kind}, whose noise is another "
                "one; only models that were trained with such betas are implemented"
            )
        defaults = _SCHEDULE_DEFAULTS | _SCHEDULERS[kind]
        values = _read(config, None, defaults, _SCHEDULE_FIXED, _SCHEDULE_IGNORED)
        for name, known in (
            ("prediction_type", tuple(_PREDICTION_TYPES)),
            ("beta_schedule", _BETA_SCHEDULES),
            ("timestep_spacing", get_args(Spacing)),
        ):
            if values[name] not in known:
                raise ValueError(
                    f"expected {name} to be one of {known}, got {values[name]!r}; others aren't implemented"
                )
        if values["rescale_betas_zero_snr"] and values["prediction_type"] == "epsilon":
            raise ValueError(
                "expected prediction_type 'v_prediction' or 'sample' with rescale_betas_zero_snr, got 'epsilon'; noise "
                "alone says nothing about the picture: correct the config"
            )
        return ScheduleSettings(**values | {"prediction_type": _PREDICTION_TYPES[values["prediction_type"]]})


def unet_config(spec: UNetSpec, latent_size: tuple[int, int]) -> dict[str, Any]:
    """The config of a spec's `UNet2DConditionModel`, without its identity branch; `unet_spec` reads it."""
    down = {has: kind for kind, has in _DOWN_BLOCKS.items()}
    up = {has: kind for kind, has in _UP_BLOCKS.items()}
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": _sample_size(latent_size),
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "block_out_channels": list(spec.block_out_channels),
        "layers_per_block": spec.layers_per_block,
        "attention_head_dim": _for_levels(spec.num_heads),  # diffusers' name for the number of heads
        "cross_attention_dim": spec.cross_attention_dim,
        "use_linear_projection": spec.use_linear_projection,
        "transformer_layers_per_block": _for_levels(spec.transformer_depth),
        "norm_num_groups": spec.norm_num_groups,
        "down_block_types": [down[has] for has in spec.down_attention],
        "up_block_types": [up[has] for has in reversed(spec.down_attention)],
    }


def vae_config(spec: VAESpec, latent_size: tuple[int, int]) -> dict[str, Any]:
    """The config of a spec's `AutoencoderKL`; `vae_spec` reads it."""
    levels = len(spec.block_out_channels)
    pixels = (latent_size[0] * spec.downsampling, latent_size[1] * spec.downsampling)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": max(pixels),
        "in_channels": spec.in_channels,
        "out_channels": spec.in_channels,
        "block_out_channels": list(spec.block_out_channels),
        "layers_per_block": spec.layers_per_block,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": spec.norm_num_groups,
        "scaling_factor": spec.scaling_factor,
        "mid_block_add_attention": spec.mid_attention,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(spec: ClipTextSpec, tokenizer: Any) -> dict[str, Any]:
    """The config of a spec's `CLIPTextModel`; `text_spec` reads it. The tokenizer says how texts begin and end."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "max_position_embeddings": spec.max_length,
        "hidden_act": spec.activation,
        "projection_dim": spec.width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def scheduler_config(settings: ScheduleSettings) -> dict[str, Any]:
    """The config of a `DDIMScheduler`; `schedule_settings` reads it."""
    prediction_types = {ours: theirs for theirs, ours in _PREDICTION_TYPES.items()}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": settings.num_train_timesteps,
        "beta_start": settings.beta_start,
        "beta_end": settings.beta_end,
        "beta_schedule": settings.beta_schedule,
        "prediction_type": prediction_types[settings.prediction_type],
        "rescale_betas_zero_snr": settings.rescale_betas_zero_snr,
        "timestep_spacing": settings.timestep_spacing,
        "set_alpha_to_one": settings.set_alpha_to_one,
        "steps_offset": settings.steps_offset,
        "clip_sample": False,
    }


def _sample_size(latent_size: tuple[int, int]) -> int | list[int]:
    height, width = latent_size
    return height if height == width else [height, width]


def _for_levels(values: int | tuple[int, ...]) -> int | list[int]:
    """One number where all levels have it."""
    if isinstance(values, int) or len(set(values)) > 1:
        return list(values) if isinstance(values, tuple) else values
    return values[0]


def _read(
    config: Config, class_name: str | None, defaults: Config, fixed: Config, ignored: Collection[str]
) -> dict[str, Any]:
    """Values of the fields in `defaults`; every other field must be ignored, null or have one of its `fixed` values.

    Raises:
        ValueError: names every field that isn't known or has another value or type.
    """
    problems = []
    if class_name is not None and config.get("_class_name", class_name) != class_name:
        problems.append(f"expected _class_name {class_name!r}, got {config['_class_name']!r}")
    for name, value in config.items():
        if name in ignored or name.startswith("_"):
            continue
        entries = value if name in _PER_LEVEL and isinstance(value, list | tuple) and value else [value]
        if name in defaults:
            if problem := _type_problem(name, value, defaults[name], entries):
                problems.append(problem)
        elif name not in fixed and value is None:
            continue
        elif name not in fixed:
            problems.append(f"expected no field {name!r}, got {value!r}")
        elif any(entry not in fixed[name] for entry in entries):
            problems.append(f"expected {name!r} {' or '.join(map(repr, fixed[name]))}, got {value!r}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}; only models without such settings are implemented")
    return {name: _as_tuple(config.get(name, default)) for name, default in defaults.items()}


def _type_problem(name: str, value: Any, default: Any, entries: Sequence[Any]) -> str | None:
    """What is wrong with the type of a value, which must be that of the default; whole numbers count things."""
    example = default
    if isinstance(default, tuple):
        example, entries = default[0], value if isinstance(value, list | tuple) and value else [None]
    if isinstance(example, bool):
        kind, fits = "true or false", lambda x: isinstance(x, bool)
    elif isinstance(example, int):
        kind, fits = "a whole number above 0", lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
    elif isinstance(example, float):
        kind, fits = "a number", lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    else:
        kind, fits = "a string", lambda x: isinstance(x, str)
    if all(fits(entry) for entry in entries):
        return None
    prefix = "a list, each entry " if isinstance(default, tuple) else ""
    return f"expected {name!r} to be {prefix}{kind}, got {value!r}"


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
