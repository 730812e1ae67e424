"""Identity adapters in two foreign formats: IP-Adapter files, which stock diffusers loads, and w-plus-adapter files.

Both number the UNet's attention layers 0, 1, 2, ... in the order down, up, middle block (self-attention even,
cross-attention odd). Tensors are flat dictionaries with dotted names, as `files.read_tensors` gives them for either
file type. The mapper's part of an IP-Adapter is in `image_projection`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from pidiff_jax.convert.files import naming, open_tensors
from pidiff_jax.convert.image_projection import from_image_projection, to_image_projection
from pidiff_jax.convert.recognise import recognise
from pidiff_jax.convert.table import DENSE, SAME, Entry, to_foreign, to_ours
from pidiff_jax.convert.unet import split_identity
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, unet_shapes
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec
from pidiff_jax.paths import flatten

_STAGES = ("down_blocks", "up_blocks", "mid_block")


# Formats of files, and the variants of identity attention that they can hold; None: any.
_VARIANTS = {"ip_adapter": ("decoupled",), "wplus_adapter": ("residual",), "adapter": None}


def check_adapter_file(path: Path, variant: str) -> None:
    """Looks whether a file holds an adapter of this variant of identity attention; reads no weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or another variant's adapter.
    """
    found = recognise(path)
    if found.kind not in _VARIANTS:
        raise ValueError(
            f"expected an adapter's file (ours, IP-Adapter or w-plus-adapter), got {found.title} at {path}; correct the path"
        )
    variants = _VARIANTS[found.kind]
    if variants is not None and variant not in variants:
        raise ValueError(
            f"expected an adapter for identity attention of the variant {variant!r}, got {found.title} at {path}, which is "
            f"{variants[0]!r}; set config.identity.variant={variants[0]}"
        )


def load_adapter_file(path: Path, unet_spec: UNetSpec, mapper_spec: MapperSpec) -> dict[str, dict[str, Any]]:
    """Reads an adapter's file in any of the formats, in float32; returns {"unet": identity branch, "mapper"}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it doesn't fit the specs.
    """
    tensors, kind = dict(open_tensors(path).cast(np.float32)), recognise(path).kind
    with naming(path):
        if kind == "ip_adapter":
            return from_ip_adapter(tensors, unet_spec, mapper_spec)
        if kind == "wplus_adapter":
            return from_wplus_adapter(tensors, unet_spec, mapper_spec)
        return _own(tensors, unet_spec, mapper_spec)


def _own(tensors: Mapping[str, np.ndarray], unet_spec: UNetSpec, mapper_spec: MapperSpec) -> dict[str, dict[str, Any]]:
    branch = split_identity(nn.meta.unbox(unet_shapes(UNet(unet_spec))))[1]
    mapper = nn.meta.unbox(mapper_shapes(IdentityMapper(mapper_spec)))
    shapes = flatten({"unet": branch, "mapper": mapper})
    table = [Entry(path, path, SAME, tuple(leaf.shape)) for path, leaf in shapes.items()]
    return to_ours(table, tensors)


def to_ip_adapter(params: Mapping[str, Any], unet_spec: UNetSpec, mapper_spec: MapperSpec) -> dict[str, np.ndarray]:
    """Writes {"unet", "mapper"} parameters as an IP-Adapter, whose image embeddings `image_embeds` makes of W+ codes.

    A sink is one more token, of zeros. `params["unet"]` may hold the whole UNet or the identity branch alone.

    Raises:
        ValueError: the adapter can't be expressed as an IP-Adapter, or parameters don't fit the specs.
    """
    sink = _check_ip_adapter(unet_spec, mapper_spec).sink
    _, identity = split_identity(params["unet"])
    tensors = to_foreign(_identity_table(unet_spec, "ip_adapter", "ip"), identity)
    return tensors | to_image_projection(params["mapper"], mapper_spec, sink)


def from_ip_adapter(
    tensors: Mapping[str, np.ndarray], unet_spec: UNetSpec, mapper_spec: MapperSpec
) -> dict[str, dict[str, Any]]:
    """Reads an IP-Adapter on W+ codes, the inverse of `to_ip_adapter`; returns {"unet": identity branch, "mapper"}.

    Raises:
        ValueError: tensors don't fit the specs, or the image projection does what the mapper can't.
    """
    sink = _check_ip_adapter(unet_spec, mapper_spec).sink
    projection = {name: tensor for name, tensor in tensors.items() if name.startswith("image_proj.")}
    identity = {name: tensor for name, tensor in tensors.items() if name not in projection}
    return {
        "unet": to_ours(_identity_table(unet_spec, "ip_adapter", "ip"), identity),
        "mapper": from_image_projection(projection, mapper_spec, sink),
    }


def to_wplus_adapter(params: Mapping[str, Any], unet_spec: UNetSpec, mapper_spec: MapperSpec) -> dict[str, np.ndarray]:
    """Writes {"unet", "mapper"} parameters as a w-plus-adapter ("w_proj." and "wplus_adapter." tensors).

    Raises:
        ValueError: the identity attention isn't of the residual variant, or parameters don't fit the specs.
    """
    _check_wplus_adapter(unet_spec, mapper_spec)
    _, identity = split_identity(params["unet"])
    mapper = to_foreign(_mapper_table(mapper_spec), params["mapper"])
    return mapper | to_foreign(_identity_table(unet_spec, "wplus_adapter", "wplus"), identity)


def from_wplus_adapter(
    tensors: Mapping[str, np.ndarray], unet_spec: UNetSpec, mapper_spec: MapperSpec
) -> dict[str, dict[str, Any]]:
    """Reads a w-plus-adapter; returns {"unet": identity branch, "mapper"}.

    Raises:
        ValueError: the identity attention isn't of the residual variant, or tensors don't fit the specs.
    """
    _check_wplus_adapter(unet_spec, mapper_spec)
    mapper = {name: tensor for name, tensor in tensors.items() if name.startswith("w_proj.")}
    identity = {name: tensor for name, tensor in tensors.items() if name not in mapper}
    return {
        "unet": to_ours(_identity_table(unet_spec, "wplus_adapter", "wplus"), identity),
        "mapper": to_ours(_mapper_table(mapper_spec), mapper),
    }


def cross_attention_paths(paths: Sequence[str]) -> list[str]:
    """The cross-attentions among parameter paths, in diffusers' order: down, up, middle block; numbers by value."""
    found = {match[1] for path in paths if (match := re.match(r"(.*/attn2)/", path))}

    def order(path: str) -> tuple:
        stage = next(i for i, name in enumerate(_STAGES) if path.startswith(name))
        return (stage, *(int(number) for number in re.findall(r"_(\d+)(?=/)", path)))

    return sorted(found, key=order)


def _identity_table(spec: UNetSpec, prefix: str, suffix: str) -> list[Entry]:
    shapes = flatten(split_identity(nn.meta.unbox(unet_shapes(UNet(spec))))[1])
    numbers = {path: 2 * i + 1 for i, path in enumerate(cross_attention_paths(list(shapes)))}
    entries = []
    for path, leaf in shapes.items():
        match = re.fullmatch(r"(.*)/(to_[qkv])_id/kernel", path)
        assert match, path
        attention, name = match.groups()
        entries.append(Entry(f"{prefix}.{numbers[attention]}.{name}_{suffix}.weight", path, DENSE, leaf.shape))
    return entries


def _mapper_table(spec: MapperSpec) -> list[Entry]:
    width = spec.tokens_per_group * spec.token_dim
    entries = [
        Entry(f"w_proj.proj_{i}.weight", f"proj_{i}/kernel", DENSE, ((end - start) * spec.wplus_dim, width))
        for i, (start, end) in enumerate(spec.groups)
    ]
    norms = (("weight", "scale"), ("bias", "bias"))
    return entries + [Entry(f"w_proj.norm.{theirs}", f"norm/{ours}", SAME, (spec.token_dim,)) for theirs, ours in norms]


def _check_ip_adapter(unet_spec: UNetSpec, mapper_spec: MapperSpec) -> IdentityAttentionSpec:
    identity = unet_spec.identity
    if identity is None or identity.variant != "decoupled":
        raise ValueError(
            f"expected decoupled identity attention, got {identity}; an IP-Adapter reads its tokens with the text's query"
        )
    widths = (mapper_spec.token_dim, identity.token_dim, unet_spec.cross_attention_dim)
    if len(set(widths)) > 1:
        raise ValueError(
            f"expected identity tokens as wide as the text, got a mapper of token_dim={widths[0]}, identity attention "
            f"of token_dim={widths[1]} and cross_attention_dim={widths[2]}; diffusers refuses such an IP-Adapter"
        )
    return identity


def _check_wplus_adapter(unet_spec: UNetSpec, mapper_spec: MapperSpec) -> None:
    identity = unet_spec.identity
    if identity is None or identity.variant != "residual" or identity.sink:
        raise ValueError(
            f"expected residual identity attention without a sink, got {identity}; a w-plus-adapter file can't hold "
            "this adapter"
        )
    if mapper_spec.kind != "linear" or mapper_spec.tokens_per_group != 1:
        raise ValueError(
            f"expected a linear mapper of one token per group, got kind={mapper_spec.kind!r} and "
            f"tokens_per_group={mapper_spec.tokens_per_group}; a w-plus-adapter file can't hold this adapter"
        )
    if mapper_spec.token_dim != identity.token_dim:
        raise ValueError(
            f"expected a mapper and identity attention of one token_dim, got {mapper_spec.token_dim} and "
            f"{identity.token_dim}; give both specs the same"
        )
