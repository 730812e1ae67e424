"""Stable Diffusion 1.x and 2.x in one file with its original names, as most fine-tunes are passed on: reading and writing."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from transformers import CLIPTokenizer

from pidiff_jax.convert.clip_tokenizer import clip_tokenizer, load_tokenizer
from pidiff_jax.convert.diffusers_config import ScheduleSettings
from pidiff_jax.convert.files import naming, open_tensors, read_metadata, write_safetensors
from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.original_names import CLIP, OPEN_CLIP, UNET, VAE, original_table, packed, unpacked
from pidiff_jax.convert.recognise import recognise_tensors
from pidiff_jax.convert.stable_diffusion import StableDiffusion
from pidiff_jax.convert.table import foreign_lazily, ours_lazily
from pidiff_jax.diffusion.samplers import Spacing
from pidiff_jax.diffusion.schedule import NoiseSchedule
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec

PREDICTION_TYPES = ("eps", "v")
# Not in the file: latent-diffusion's configs have these for all released models.
_BETAS = (0.00085, 0.012)
_HEADS_1X, _HEAD_WIDTH_2X, _TEXT_HEAD_WIDTH = 8, 64, 64
# Buffers of the training, its moving average, and what a text encoder has beside what the UNet reads.
_IGNORED = (
    r"betas|lvlb_weights|logvar|scale_factor|(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?|posterior_.*",
    r"model_ema\..*|v_pred|ztsnr",
    r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids",
    r"cond_stage_model\.transformer\.text_projection\.weight",
    r"cond_stage_model\.(model\.)?(logit_scale|text_projection|attn_mask)",
)
# ModelSpec's word (github.com/Stability-AI/ModelSpec) -> ours.
_MODEL_SPEC = {"epsilon": "eps", "v": "v"}

Shapes = Mapping[str, tuple[int, ...]]


def open_single_file(
    path: Path | str, *, tokenizer: Path | str | None = None, prediction_type: str | None = None
) -> StableDiffusion:
    """Opens a .safetensors or .ckpt file; reads no weights.

    Args:
        path: of the file. Moving averages in it ("model_ema.") are left alone.
        tokenizer: folder of its tokenizer; None takes CLIP's own vocabulary (see `clip_tokenizer`).
        prediction_type: "eps" or "v"; None: what the file says, else "eps" for Stable Diffusion 1.x.

    Raises:
        FileNotFoundError: no file, or no tokenizer.
        ValueError: another model, a tensor that tells its sizes is missing, or a 2.x model that doesn't say what it predicts.
    """
    path = Path(path)
    tensors = _state_dict(open_tensors(path))
    with naming(path):
        found = recognise_tensors(tensors, path.name)
        if found.kind != "single_file":
            raise ValueError(
                f"expected Stable Diffusion in one file, got {found.title}; give the base model, a folder or file"
            )
        tensors = _with_long_names(tensors)
        shapes = {name: tuple(struct.shape) for name, struct in tensors.structs.items()}
        is_open_clip = any(name.startswith(OPEN_CLIP) for name in shapes)
        specs = (_unet_spec(shapes), _vae_spec(shapes), _text_spec(shapes, is_open_clip))
        _check_schedule(tensors)
        prediction = _prediction_type(path, shapes, prediction_type, is_open_clip)
    words = load_tokenizer(tokenizer) if tokenizer else clip_tokenizer(pad="!" if is_open_clip else None)
    with naming(path):
        _check_tokenizer(words, specs[2])
    side = 96 if is_open_clip and prediction == "v" else 64
    # As diffusers' scheduler_config.json of the released models has them.
    zero_snr = "ztsnr" in shapes
    spacing: Spacing = (
        "trailing" if zero_snr else "leading"
    )  # without the last step, such a model isn't asked for its own
    schedule = ScheduleSettings(1000, *_BETAS, "scaled_linear", prediction, zero_snr, spacing, False)
    return StableDiffusion(
        path, *specs, words, schedule, (side, side), partial(_read, path, tensors, specs, is_open_clip)
    )


def write_single_file(
    path: Path | str,
    model: StableDiffusion,
    dtype: np.dtype | type | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a model with its original names, in safetensors; `open_single_file` reads it. dtype None keeps the tensors'.

    A text encoder with `gelu` gets OpenCLIP's names and, since nothing reads a 2.x encoder's last layer, one of zeros.

    Raises:
        FileExistsError: something is at `path` already.
        ValueError: sizes that the names can't tell (numbers of heads, groups of norms), or another schedule.
    """
    specs = (model.unet_spec, model.vae_spec, model.text_spec)
    is_open_clip = model.text_spec.activation == "gelu"
    _check_can_be_told(model, is_open_clip)
    tensors = foreign_lazily(original_table(*specs, open_clip=is_open_clip), model.read().cast(dtype))
    if is_open_clip:
        tensors = _with_last_layer(packed(tensors), model.text_spec.num_layers)
    if model.schedule.prediction_type == "v":
        marks = ["v_pred", *(["ztsnr"] if model.schedule.rescale_betas_zero_snr else [])]
        tensors = tensors.extended(LazyTensors.of({name: np.zeros(0, np.float32) for name in marks}))
    write_safetensors(path, tensors, {"format": "pt", **(metadata or {})})


def _state_dict(tensors: LazyTensors) -> LazyTensors:
    """What a .ckpt of a trainer keeps under "state_dict"; the optimizer and counters beside it are left alone."""
    inside = tensors.under("state_dict.")
    return inside if inside else tensors


def _with_long_names(tensors: LazyTensors) -> LazyTensors:
    """Text encoders saved by some merging tools lack "text_model."."""
    others = (f"{CLIP}text_model.", f"{CLIP}text_projection.")
    is_short = {name: name.startswith(CLIP) and not name.startswith(others) for name in tensors}
    return tensors.renamed(
        {name: f"{CLIP}text_model.{name[len(CLIP) :]}" if short else name for name, short in is_short.items()}
    )


def _read(
    path: Path, tensors: LazyTensors, specs: tuple[UNetSpec, VAESpec, ClipTextSpec], is_open_clip: bool
) -> LazyTensors:
    table = original_table(*specs, open_clip=is_open_clip)
    ignored: tuple[str, ...] = _IGNORED
    if is_open_clip:
        tensors = unpacked(tensors)
        last = f"{OPEN_CLIP}transformer.resblocks.{specs[2].num_layers}."
        ignored = (*_IGNORED, last.replace(".", r"\.") + ".*")
    with naming(path):
        return ours_lazily(table, tensors, ignored)


def _shape(shapes: Shapes, name: str, ndim: int | None = None) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or (ndim is not None and len(shape) != ndim):
        got = "none" if shape is None else f"one of shape {shape}"
        raise ValueError(f"expected a tensor {name!r}, got {got}; the file is incomplete, or of another model")
    return shape


def _count(shapes: Shapes, pattern: str) -> int:
    """How many of `pattern` with 0, 1, 2, ... in its place are there."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _unet_spec(shapes: Shapes) -> UNetSpec:
    blocks = len({name.split(".")[3] for name in shapes if name.startswith(f"{UNET}input_blocks.")})
    downs = [index for index in range(blocks) if f"{UNET}input_blocks.{index}.0.op.weight" in shapes]
    layers = downs[0] - 1 if downs else blocks - 1
    starts = [1 + level * (layers + 1) for level in range(len(downs) + 1)]
    middle = f"{UNET}middle_block.1."
    is_linear = len(_shape(shapes, f"{middle}proj_in.weight")) == 2
    widths = tuple(_shape(shapes, f"{UNET}input_blocks.{start}.0.out_layers.3.weight", 4)[0] for start in starts)
    depths = [_count(shapes, f"{UNET}input_blocks.{start}.1.transformer_blocks.{{}}.norm1.weight") for start in starts]
    middle_depth = _count(shapes, f"{middle}transformer_blocks.{{}}.norm1.weight")
    attention = tuple(depth > 0 for depth in depths)
    depths[-1] = depths[-1] or middle_depth
    return UNetSpec(
        in_channels=_shape(shapes, f"{UNET}input_blocks.0.0.weight", 4)[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight", 4)[0],
        block_out_channels=widths,
        layers_per_block=layers,
        down_attention=attention,
        num_heads=_heads(widths, is_linear),
        cross_attention_dim=_shape(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight", 2)[1],
        use_linear_projection=is_linear,
        transformer_depth=tuple(depth or 1 for depth in depths),
    )


def _heads(widths: tuple[int, ...], is_linear: bool) -> tuple[int, ...]:
    """No tensor tells them: 8 everywhere in 1.x, as many as are 64 wide in 2.x."""
    return tuple(width // _HEAD_WIDTH_2X if is_linear else _HEADS_1X for width in widths)


def _vae_spec(shapes: Shapes) -> VAESpec:
    levels = _count(shapes, f"{VAE}encoder.down.{{}}.block.0.conv1.weight")
    return VAESpec(
        block_out_channels=tuple(
            _shape(shapes, f"{VAE}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)
        ),
        layers_per_block=_count(shapes, f"{VAE}encoder.down.0.block.{{}}.conv1.weight"),
        latent_channels=_shape(shapes, f"{VAE}decoder.conv_in.weight", 4)[1],
        in_channels=_shape(shapes, f"{VAE}encoder.conv_in.weight", 4)[1],
        mid_attention=f"{VAE}encoder.mid.attn_1.q.weight" in shapes,
    )


def _text_spec(shapes: Shapes, is_open_clip: bool) -> ClipTextSpec:
    if is_open_clip:
        tokens, positions = f"{OPEN_CLIP}token_embedding.weight", f"{OPEN_CLIP}positional_embedding"
        fc1, layers = f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.{}.ln_1.weight"
        # The UNet reads the penultimate layer.
        num_layers = _count(shapes, OPEN_CLIP + layers) - 1
    else:
        embeddings, encoder = f"{CLIP}text_model.embeddings.", f"{CLIP}text_model.encoder.layers."
        tokens, positions = f"{embeddings}token_embedding.weight", f"{embeddings}position_embedding.weight"
        fc1, num_layers = f"{encoder}0.mlp.fc1.weight", _count(shapes, encoder + "{}.layer_norm1.weight")
    vocab_size, width = _shape(shapes, tokens, 2)
    return ClipTextSpec(
        vocab_size=vocab_size,
        width=width,
        num_layers=num_layers,
        num_heads=max(width // _TEXT_HEAD_WIDTH, 1),
        mlp_width=_shape(shapes, fc1, 2)[0],
        max_length=_shape(shapes, positions, 2)[0],
        activation="gelu" if is_open_clip else "quick_gelu",
    )


def _prediction_type(path: Path, shapes: Shapes, given: str | None, is_open_clip: bool) -> str:
    if given is not None:
        if given not in PREDICTION_TYPES:
            raise ValueError(f"expected a prediction type of {PREDICTION_TYPES}, got {given!r}; correct it")
        return given
    if "v_pred" in shapes:
        return "v"
    written = read_metadata(path).get("modelspec.prediction_type") if path.suffix == ".safetensors" else None
    if written in _MODEL_SPEC:
        return _MODEL_SPEC[written]
    if is_open_clip:
        raise ValueError(
            "expected to be told what this Stable Diffusion 2.x predicts, which the file doesn't say; give --prediction_type "
            "(config.base.prediction_type) as v for 768 px models, eps for 512 px base models"
        )
    return "eps"


def _check_schedule(tensors: LazyTensors) -> None:
    """The noise levels of the training are buffers of most files: they must be those that we would take."""
    if "alphas_cumprod" not in tensors:
        return
    ours = np.asarray(NoiseSchedule.scaled_linear(*_BETAS, 1000).alphas_cumprod, np.float32)
    theirs = tensors["alphas_cumprod"].astype(np.float32)
    if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=0, atol=2e-3):
        raise ValueError(
            f"expected the noise schedule of Stable Diffusion (scaled linear betas, {_BETAS[0]} to {_BETAS[1]}), got another "
            "in alphas_cumprod; such a model needs its diffusers folder, whose scheduler says which"
        )


def _check_tokenizer(tokenizer: CLIPTokenizer, text: ClipTextSpec) -> None:
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > text.vocab_size or tokenizer.model_max_length != text.max_length:
        raise ValueError(
            f"expected a tokenizer of at most {text.vocab_size} tokens and texts of {text.max_length}, got {tokens} and "
            f"{tokenizer.model_max_length}; give the model's own (--tokenizer, config.base.tokenizer)"
        )


def _check_can_be_told(model: StableDiffusion, is_open_clip: bool) -> None:
    """Refuses what a reader would take for something else."""
    unet, text, schedule = model.unet_spec, model.text_spec, model.schedule
    usual_heads = _heads(unet.block_out_channels, unet.use_linear_projection)
    same_heads = unet.num_heads == usual_heads and unet.norm_num_groups == 32
    standard_text = text.num_heads == max(text.width // _TEXT_HEAD_WIDTH, 1)
    betas = (schedule.beta_start, schedule.beta_end, schedule.beta_schedule, schedule.num_train_timesteps)
    checks = {
        f"heads and norms of Stable Diffusion's UNet, got {unet.num_heads} and {unet.norm_num_groups} groups": same_heads,
        f"heads {_TEXT_HEAD_WIDTH} wide in the text encoder, got {text.num_heads} of {text.width}": standard_text,
        f"a VAE with 32 groups, got {model.vae_spec.norm_num_groups}": model.vae_spec.norm_num_groups == 32,
        f"Stable Diffusion's noise schedule, got {betas}": betas == (*_BETAS, "scaled_linear", 1000),
        f"a prediction of eps or v, got {schedule.prediction_type}": schedule.prediction_type in PREDICTION_TYPES,
        "a linear projection with OpenCLIP, and a convolution with CLIP": unet.use_linear_projection == is_open_clip,
    }
    if wrong := [what for what, is_fine in checks.items() if not is_fine]:
        raise ValueError(
            f"expected {wrong[0]}; a single file doesn't tell, and its readers would take it for the usual: write a folder"
        )


def _with_last_layer(tensors: LazyTensors, layer: int) -> LazyTensors:
    """The layer after those that are read, which OpenCLIP's own code expects; and its projection, as zeros too."""
    first, last = (f"{OPEN_CLIP}transformer.resblocks.{index}." for index in (0, layer))
    extra = {last + name[len(first) :]: struct for name, struct in tensors.structs.items() if name.startswith(first)}
    width = tensors.structs[f"{OPEN_CLIP}ln_final.weight"]
    extra[f"{OPEN_CLIP}text_projection"] = jax.ShapeDtypeStruct(width.shape * 2, width.dtype)
    zeros = LazyTensors(extra, lambda name: np.zeros(extra[name].shape, extra[name].dtype))
    return tensors.extended(zeros)
