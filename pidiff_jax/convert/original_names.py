"""Names of the original Stable Diffusion (latent-diffusion, LDM) for ours: one table for the whole model, both ways.

Our paths mirror diffusers' names, so the tables of `unet.py`, `vae.py` and `clip.py` are taken and renamed. Names count
layers through here ("input_blocks.4.0"), which depends on the spec.

Source: latent-diffusion, ldm/modules/diffusionmodules/{openaimodel,model}.py and ldm/modules/encoders/modules.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from pidiff_jax.convert.clip import clip_table
from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.table import DENSE, Entry, Layout
from pidiff_jax.convert.unet import unet_table
from pidiff_jax.convert.vae import vae_table
from pidiff_jax.models.clip import ClipTextSpec
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.models.vae import VAESpec

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."

# The VAE's attention is made of 1x1 convolutions there.
_POINTWISE = Layout("pointwise", lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
_UNET_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_VAE_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))
_OPEN_CLIP = (
    (r"^text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)
_PACKED = re.compile(r"(.*\.attn\.)in_proj_(weight|bias)")
_PIECES = ("q_proj", "k_proj", "v_proj")


def original_table(unet: UNetSpec, vae: VAESpec, text: ClipTextSpec, *, open_clip: bool) -> list[Entry]:
    """Entries between "unet/...", "vae/..." and "text_encoder/..." of ours and the tensors of an original file.

    open_clip: the text encoder has OpenCLIP's names, as in Stable Diffusion 2.x, with `unpacked` queries, keys and values.
    """
    entries = _renamed("unet", UNET, unet_table(unet), _unet_modules(unet))
    entries += _renamed("vae", VAE, _pointwise(vae_table(vae)), _vae_modules(vae))
    for entry in clip_table(text):
        name = CLIP + entry.foreign
        if open_clip:
            name = entry.foreign
            for pattern, new in _OPEN_CLIP:
                name = re.sub(pattern, new, name)
            name = OPEN_CLIP + name
        entries.append(replace(entry, foreign=name, ours=f"text_encoder/{entry.ours}"))
    return entries


def unpacked(tensors: LazyTensors) -> LazyTensors:
    """OpenCLIP's attention with a tensor each for queries, keys and values instead of one for the three."""
    structs: dict[str, jax.ShapeDtypeStruct] = {}
    places: dict[str, tuple[str, int]] = {}
    for name, struct in tensors.structs.items():
        match = _PACKED.fullmatch(name)
        if match is None or not struct.shape or struct.shape[0] % 3:
            structs[name] = struct
            continue
        rows = struct.shape[0] // 3
        for index, piece in enumerate(_PIECES):
            own = f"{match[1]}{piece}.{match[2]}"
            structs[own] = jax.ShapeDtypeStruct((rows, *struct.shape[1:]), struct.dtype)
            places[own] = (name, index)

    def read(name: str) -> np.ndarray:
        if name not in places:
            return tensors.read(name)
        packed, index = places[name]
        return np.split(tensors.read(packed), 3)[index]

    return LazyTensors(structs, read)


def packed(tensors: LazyTensors) -> LazyTensors:
    """The inverse of `unpacked`."""
    structs: dict[str, jax.ShapeDtypeStruct] = {}
    sources: dict[str, list[str]] = {}
    for name, struct in tensors.structs.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv]_proj)\.(weight|bias)", name)
        if match is None:
            structs[name] = struct
        elif match[2] == _PIECES[0]:
            own = f"{match[1]}in_proj_{match[3]}"
            structs[own] = jax.ShapeDtypeStruct((3 * struct.shape[0], *struct.shape[1:]), struct.dtype)
            sources[own] = [f"{match[1]}{piece}.{match[3]}" for piece in _PIECES]

    def read(name: str) -> np.ndarray:
        if name not in sources:
            return tensors.read(name)
        return np.concatenate([tensors.read(piece) for piece in sources[name]])

    return LazyTensors(structs, read)


def _renamed(part: str, prefix: str, table: Sequence[Entry], modules: Mapping[str, str]) -> list[Entry]:
    """The table with other modules' names; a name that no module covers is a mistake of ours."""
    entries = []
    for entry in table:
        module = next((old for old in modules if entry.foreign.startswith(f"{old}.")), None)
        assert module is not None, entry.foreign
        name = modules[module] + entry.foreign[len(module) :]
        entries.append(replace(entry, foreign=prefix + name, ours=f"{part}/{entry.ours}"))
    return entries


def _pointwise(table: Sequence[Entry]) -> list[Entry]:
    return [
        replace(entry, layout=_POINTWISE) if ".attentions." in entry.foreign and entry.layout is DENSE else entry
        for entry in table
    ]


def _unet_modules(spec: UNetSpec) -> dict[str, str]:
    names = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}

    def add(block: str, layer: int, target: str, attention: bool) -> None:
        for old, new in _UNET_RESNET:
            names[f"{block}.resnets.{layer}.{old}"] = f"{target}.0.{new}"
        if attention:
            names[f"{block}.attentions.{layer}"] = f"{target}.1"

    levels, layers = len(spec.block_out_channels), spec.layers_per_block
    for level, attention in enumerate(spec.down_attention):
        start = 1 + level * (layers + 1)
        for layer in range(layers):
            add(f"down_blocks.{level}", layer, f"input_blocks.{start + layer}", attention)
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{start + layers}.0.op"
    for block, attention in enumerate(reversed(spec.down_attention)):
        start = block * (layers + 1)
        for layer in range(layers + 1):
            add(f"up_blocks.{block}", layer, f"output_blocks.{start + layer}", attention)
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{start + layers}.{1 + attention}.conv"
    for index, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        for old, new in _UNET_RESNET if name.startswith("resnets") else ():
            names[f"mid_block.{name}.{old}"] = f"middle_block.{index}.{new}"
    names["mid_block.attentions.0"] = "middle_block.1"
    assert levels == len(spec.down_attention)
    return names


def _vae_modules(spec: VAESpec) -> dict[str, str]:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels = len(spec.block_out_channels)

    def add(block: str, target: str) -> None:
        names[f"{block}.conv_shortcut"] = f"{target}.nin_shortcut"
        for old in ("norm1", "conv1", "norm2", "conv2"):
            names[f"{block}.{old}"] = f"{target}.{old}"

    for half in ("encoder", "decoder"):
        names |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for index in range(2):
            add(f"{half}.mid_block.resnets.{index}", f"{half}.mid.block_{index + 1}")
        for old, new in _VAE_ATTENTION:
            names[f"{half}.mid_block.attentions.0.{old}"] = f"{half}.mid.attn_1.{new}"
    for level in range(levels):
        own, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"  # levels are counted by resolution there
        for layer in range(spec.layers_per_block):
            add(f"encoder.down_blocks.{level}.resnets.{layer}", f"{own}.block.{layer}")
        for layer in range(spec.layers_per_block + 1):
            add(f"decoder.up_blocks.{level}.resnets.{layer}", f"{up}.block.{layer}")
        names[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{own}.downsample.conv"
        names[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return names
