"""StyleGAN2's mapping and synthesis networks from and to the layout of the rosinality PyTorch port."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from pidiff_jax.convert.files import naming, read_tensors
from pidiff_jax.convert.table import Entry, Layout, derive_table, to_foreign, to_ours
from pidiff_jax.models.stylegan2 import FIR_TAPS, StyleGan2Spec, Synthesis
from pidiff_jax.models.stylegan2 import Mapping as MappingNetwork

# Where a checkpoint keeps the generator: rosinality's moving average, e4e and pSp files, or a bare state dict.
_PREFIXES = ("g_ema.", "state_dict.decoder.", "decoder.", "")
_NOISE = "noises.noise_{}"
_FIR_BUFFER = re.compile(r"convs\.\d*[02468]\.conv\.blur\.kernel|to_rgbs\.\d+\.upsample\.kernel")
_RENAMES = (
    (r"^(mapping|synthesis)\.", ""),
    (r"^constant$", "input.input"),
    (r"^(conv1|convs\.\d+)\.bias$", r"\1.activate.bias"),
    (r"\.noise_strength$", ".noise.weight"),
)
_LAYOUTS = {
    r"/conv/kernel$": Layout(
        "modulated", lambda x: x[0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[None]
    ),
    r"^synthesis/constant$": Layout(
        "constant", lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None]
    ),
    r"^synthesis/to_rgb(1|s_\d+)/bias$": Layout("rgb_bias", lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1)),
}


class StyleGan2Weights(NamedTuple):
    """A generator's parameters and what its file holds beside them.

    noise: the fixed (r, r) pictures of `Synthesis`, one per styled convolution; None if the file has none.
    latent_avg: the average code, one row per W+ layer; None if the file has none.
    """

    mapping: dict[str, Any]
    synthesis: dict[str, Any]
    noise: tuple[np.ndarray, ...] | None = None
    latent_avg: np.ndarray | None = None


def stylegan2_table(spec: StyleGan2Spec) -> list[Entry]:
    """The table between {"mapping": ..., "synthesis": ...} and rosinality's `Generator`, apart from its buffers."""
    key, z, wplus = jax.random.key(0), jnp.zeros((1, spec.style_dim)), jnp.zeros((1, spec.num_layers, spec.style_dim))
    shapes = {
        "mapping": jax.eval_shape(MappingNetwork(spec).init, key, z)["params"],
        "synthesis": jax.eval_shape(Synthesis(spec).init, key, wplus)["params"],
    }
    return derive_table(nn.meta.unbox(shapes), _RENAMES, _LAYOUTS)


def stylegan2_from_pytorch(spec: StyleGan2Spec, tensors: Mapping[str, np.ndarray]) -> StyleGan2Weights:
    """Our parameters and the fixed noise from a rosinality `Generator`'s state dict; dtypes are kept.

    Raises:
        ValueError: names every missing, unknown and misshapen tensor; a low-pass filter isn't ours.
    """
    rest = dict(tensors)
    _check_filters({name: rest.pop(name) for name in tensors if _FIR_BUFFER.fullmatch(name)})
    noise = _take_noise(spec, rest)
    params = to_ours(stylegan2_table(spec), rest)
    return StyleGan2Weights(params["mapping"], params["synthesis"], noise)


def stylegan2_to_pytorch(
    spec: StyleGan2Spec,
    mapping: Mapping[str, Any],
    synthesis: Mapping[str, Any],
    noise: Sequence[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of a rosinality `Generator`, low-pass filters included; the inverse of `stylegan2_from_pytorch`.

    `noise` None leaves the `noises.*` buffers out.

    Raises:
        ValueError: parameters or noise don't fit the spec.
    """
    tensors = to_foreign(stylegan2_table(spec), {"mapping": mapping, "synthesis": synthesis})
    if noise is not None:
        named = {_NOISE.format(i): np.asarray(picture)[None, None] for i, picture in enumerate(noise)}
        tensors |= named
        _take_noise(spec, dict(named))
    for level in range(len(spec.channels) - 1):
        for name in (f"convs.{2 * level}.conv.blur.kernel", f"to_rgbs.{level}.upsample.kernel"):
            tensors[name] = _fir_kernel()
    return tensors


def load_stylegan2_checkpoint(path: Path | str, spec: StyleGan2Spec) -> StyleGan2Weights:
    """The generator, in float32, of a rosinality checkpoint ("g_ema"), of an e4e file ("decoder.*") or of a bare state dict.

    The file is a PyTorch or a safetensors file; discriminator, encoder and optimizer are left alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no such generator, or one that doesn't fit the spec.
    """
    tensors = read_tensors(path, np.float32)
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}input.input" in tensors), None)
    if prefix is None:
        places = ", ".join(repr(prefix + "input.input") for prefix in _PREFIXES)
        raise ValueError(f"expected a StyleGAN2 generator in {path}, got none of {places}; check the path")
    average = tensors.pop("latent_avg", None)
    generator = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    with naming(path):
        weights = stylegan2_from_pytorch(spec, generator)
        if average is None:
            return weights
        return weights._replace(latent_avg=latent_average(average, spec.num_layers, spec.style_dim))


def latent_average(tensor: np.ndarray, num_layers: int, dim: int) -> Float[np.ndarray, "{num_layers} {dim}"]:
    """The average code with one row per W+ layer, from a tensor (d,), (1, d), (l, d) or (1, l, d).

    Raises:
        ValueError: any other shape.
    """
    if tensor.ndim == 3 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.shape not in ((dim,), (1, dim), (num_layers, dim)):
        raise ValueError(
            f"expected latent_avg of shape ({dim},), (1, {dim}) or ({num_layers}, {dim}), got {tensor.shape}; check that "
            "the file and the spec name the same model"
        )
    return np.array(np.broadcast_to(tensor, (num_layers, dim)))


def _take_noise(spec: StyleGan2Spec, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, ...] | None:
    """Removes the noise buffers from `tensors`; none at all is fine, a part isn't."""
    sizes = [4] + [4 * 2**level for level in range(1, len(spec.channels)) for _ in range(2)]
    expected = {_NOISE.format(i): (1, 1, size, size) for i, size in enumerate(sizes)}
    found = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_NOISE.format(""))}
    if not found:
        return None
    got = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if wrong := sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)):
        listing = "; ".join(f"{name!r}: expected {expected.get(name)}, got {got.get(name)}" for name in wrong[:12])
        raise ValueError(
            f"the noise doesn't fit this model: {listing}; check that the file and the spec name the same model"
        )
    return tuple(np.ascontiguousarray(found[name][0, 0]) for name in expected)


def _check_filters(kernels: Mapping[str, np.ndarray]) -> None:
    expected = _fir_kernel()
    for name, kernel in kernels.items():
        if kernel.shape != expected.shape or not np.allclose(kernel, expected, rtol=0, atol=1e-3):
            raise ValueError(
                f"expected the low-pass filter {list(FIR_TAPS)} of gain 4 at {name!r}, got {np.asarray(kernel).tolist()}; "
                "this generator was trained with another filter, which isn't implemented"
            )


def _fir_kernel() -> np.ndarray:
    taps = np.array(FIR_TAPS, np.float32) * (2.0 / math.fsum(FIR_TAPS))
    return np.outer(taps, taps).astype(np.float32)
