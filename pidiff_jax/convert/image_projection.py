"""Image projections of IP-Adapter files that compute a mapper's tokens, and what they read instead of an image's embedding.

Diffusers knows two kinds of use here, told apart by the names of their tensors. Both end in the mapper's LayerNorm.

linear (proj, norm): one matrix, from the flattened W+ code to exactly four tokens. A token reads only the columns of its group.

full (proj.0, proj.2, proj.3): a linear layer, GELU and a linear layer, as wide inside as the input, on each row of a matrix;
a row becomes a token. The layers are the same for all rows, so a row says which token it is for. Row t is

    [W+ layers of t's group, zeros | a column for each row, 1 in that of t, 0 in the others | zeros]

and each token has hidden units of its own, on which the columns of all other rows have the weight -8192: GELU of so low a
number is exactly 0. With x the layers of the group, the units of token t are

    linear  y = A x                           2 d: gelu(y) and gelu(-y), whose difference is y
    mlp     y = A (gelu(B x + b) - gelu(b))   one for each of the hidden layer, b being the weight of column t, and one of
                                              constant value, whose weight in proj.2 is that of -A gelu(b)

Biases of the layers are zero. A sink is one more row, which switches all units off and so becomes the LayerNorm's bias; where
that is zero, so are the token, its key (logit 0) and its value. The zero code, "no identity", becomes a matrix of zeros: all
units are gelu(0) = 0, and all tokens the LayerNorm's bias, as the mapper's are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float
from scipy.special import erf

from pidiff_jax.convert.table import SAME, Entry, derive_table, to_foreign, to_ours
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes

_LINEAR_TOKENS = 4  # diffusers fixes this number for the linear kind
# Powers of two, which half precision holds exactly. No unit comes near the first by itself; gelu(8) is 8.
_OFF = -8192.0
_CONSTANT = 8.0

Tensors = Mapping[str, np.ndarray]


def to_image_projection(mapper: Mapping[str, Any], spec: MapperSpec, sink: bool = False) -> dict[str, np.ndarray]:
    """Writes a mapper's parameters as "image_proj." tensors: of the linear kind where it can hold them, else of the full.

    The full kind has n x n numbers for rows of width n, and n is at least the number of tokens times 2 d (linear) or one more
    than the hidden width (mlp): large files for many wide tokens.

    Raises:
        ValueError: parameters don't fit the spec, or a LayerNorm with bias beside a sink.
    """
    ours = to_foreign(_mapper_table(spec), mapper)
    _check_sink(ours["norm.bias"], sink)
    return {f"image_proj.{name}": tensor for name, tensor in _layout(spec, sink).write(ours).items()}


def from_image_projection(tensors: Tensors, spec: MapperSpec, sink: bool = False) -> dict[str, Any]:
    """Reads "image_proj." tensors, the inverse of `to_image_projection`; returns a mapper's parameters.

    Raises:
        ValueError: tensors don't fit the spec, or do what a mapper of this spec can't.
    """
    layout = _layout(spec, sink)
    table = [Entry(f"image_proj.{name}", name, SAME, shape) for name, shape in layout.shapes().items()]
    found = to_ours(table, tensors)
    ours = layout.read(found)
    _check_sink(ours["norm.bias"], sink)
    if different := [name for name, tensor in layout.write(ours).items() if not _same(name, found[name], tensor)]:
        raise ValueError(
            "expected an image projection without bias in which a token reads only the W+ layers of its group, got "
            f"another image_proj.{different[0]}; it was made for other inputs or another mapper"
        )
    return to_ours(_mapper_table(spec), ours)


def image_embeds(
    wplus: Float[np.ndarray, "b l d"], spec: MapperSpec, sink: bool = False
) -> Float[np.ndarray, "b 1 n"] | Float[np.ndarray, "b 1 t n"]:
    """What the image projection reads, for each W+ code: one of diffusers' `ip_adapter_image_embeds`.

    That of the zero code is zero. For guidance diffusers' pipeline wants as many of those first.

    Returns:
        float32: the flattened code for the linear kind, rows for the full one.

    Raises:
        ValueError: codes of another size than the spec's.
    """
    if wplus.shape[1:] != (spec.num_layers, spec.wplus_dim):
        raise ValueError(
            f"expected W+ codes of shape (b, {spec.num_layers}, {spec.wplus_dim}), got {wplus.shape}; one code is "
            "wplus[None]"
        )
    return _layout(spec, sink).embeds(wplus.astype(np.float32))[:, None]


@dataclass(frozen=True)
class _Linear:
    """The linear kind. A mapper's tensors have PyTorch's names and shapes here."""

    spec: MapperSpec

    def shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.spec
        rows, norm = spec.num_tokens * spec.token_dim, (spec.token_dim,)
        weight = (rows, spec.num_layers * spec.wplus_dim)
        return {"proj.weight": weight, "proj.bias": (rows,), "norm.weight": norm, "norm.bias": norm}

    def blocks(self) -> list[tuple[slice, slice]]:
        """Where each group's weights lie in the matrix."""
        rows, dim = self.spec.tokens_per_group * self.spec.token_dim, self.spec.wplus_dim
        return [np.s_[i * rows : (i + 1) * rows, a * dim : b * dim] for i, (a, b) in enumerate(self.spec.groups)]

    def write(self, mapper: Tensors) -> dict[str, np.ndarray]:
        dtype = mapper["norm.weight"].dtype
        out = {name: np.zeros(shape, dtype) for name, shape in self.shapes().items()}
        for group, block in enumerate(self.blocks()):
            out["proj.weight"][block] = mapper[f"proj.{group}.weight"]
        return out | {name: mapper[name] for name in ("norm.weight", "norm.bias")}

    def read(self, tensors: Tensors) -> dict[str, np.ndarray]:
        mapper = {f"proj.{group}.weight": tensors["proj.weight"][block] for group, block in enumerate(self.blocks())}
        return mapper | {name: tensors[name] for name in ("norm.weight", "norm.bias")}

    def embeds(self, wplus: np.ndarray) -> np.ndarray:
        return wplus.reshape(len(wplus), -1)


@dataclass(frozen=True)
class _Full:
    """The full kind: where everything lies in its rows and matrices."""

    spec: MapperSpec
    sink: bool

    @property
    def num_rows(self) -> int:
        return self.spec.num_tokens + self.sink

    @property
    def code_width(self) -> int:
        return max(end - start for start, end in self.spec.groups) * self.spec.wplus_dim

    @property
    def columns(self) -> slice:
        """Those that tell the rows apart; the sink's is the last."""
        return slice(self.code_width, self.code_width + self.num_rows)

    @property
    def units_per_token(self) -> int:
        return 2 * self.spec.token_dim if self.spec.hidden_width is None else self.spec.hidden_width + 1

    @property
    def width(self) -> int:
        return max(self.columns.stop, self.spec.num_tokens * self.units_per_token)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, dim = self.width, self.spec.token_dim
        layers = {"0.weight": (width, width), "0.bias": (width,), "2.weight": (dim, width), "2.bias": (dim,)}
        return {f"proj.{name}": shape for name, shape in {**layers, "3.weight": (dim,), "3.bias": (dim,)}.items()}

    def units(self, token: int) -> slice:
        return slice(token * self.units_per_token, (token + 1) * self.units_per_token)

    def tokens(self, group: int) -> range:
        return range(group * self.spec.tokens_per_group, (group + 1) * self.spec.tokens_per_group)

    def size(self, group: int) -> int:
        """Of the group's W+ layers, flattened."""
        start, end = self.spec.groups[group]
        return (end - start) * self.spec.wplus_dim

    def write(self, mapper: Tensors) -> dict[str, np.ndarray]:
        dtype = mapper["norm.weight"].dtype
        out = {name: np.zeros(shape, dtype) for name, shape in self.shapes().items()}
        for group in range(len(self.spec.groups)):
            weights = np.split(mapper[f"proj.{group}.weight"], self.spec.tokens_per_group)
            for token, weight in zip(self.tokens(group), weights, strict=True):
                units, own_column = self.units(token), self.code_width + token
                first, second = out["proj.0.weight"][units], out["proj.2.weight"][:, units]  # views
                first[:, self.columns], first[:, own_column] = _OFF, 0
                if self.spec.hidden_width is None:
                    first[:, : self.size(group)] = np.concatenate([weight, -weight])
                    second[:] = np.concatenate([np.eye(len(weight)), -np.eye(len(weight))], axis=1)
                else:
                    bias = mapper[f"hidden.{group}.bias"]
                    first[:-1, : self.size(group)] = mapper[f"hidden.{group}.weight"]
                    first[:-1, own_column], first[-1, own_column] = bias, _CONSTANT
                    second[:, :-1] = weight
                    second[:, -1] = -weight.astype(np.float64) @ _gelu(bias) / _CONSTANT
        return out | {"proj.3.weight": mapper["norm.weight"], "proj.3.bias": mapper["norm.bias"]}

    def read(self, tensors: Tensors) -> dict[str, np.ndarray]:
        first, second = tensors["proj.0.weight"], tensors["proj.2.weight"]
        mapper = {"norm.weight": tensors["proj.3.weight"], "norm.bias": tensors["proj.3.bias"]}
        for group in range(len(self.spec.groups)):
            tokens = self.tokens(group)
            blocks = [self.units(token) for token in tokens]
            if self.spec.hidden_width is None:
                weights = [first[units][: self.spec.token_dim, : self.size(group)] for units in blocks]
            else:
                weights = [second[:, units][:, :-1] for units in blocks]
                hidden = first[blocks[0]][:-1]  # the group's other tokens have the same
                mapper[f"hidden.{group}.weight"] = hidden[:, : self.size(group)]
                mapper[f"hidden.{group}.bias"] = hidden[:, self.code_width + tokens[0]]
            mapper[f"proj.{group}.weight"] = np.concatenate(weights)
        return mapper

    def embeds(self, wplus: np.ndarray) -> np.ndarray:
        out = np.zeros((len(wplus), self.num_rows, self.width), np.float32)
        for group, (start, end) in enumerate(self.spec.groups):
            out[:, self.tokens(group), : self.size(group)] = wplus[:, start:end].reshape(len(wplus), 1, -1)
        out[:, :, self.columns] = np.eye(self.num_rows)
        # The zero code goes without columns: nothing is added and taken away again, so it is exact in any precision.
        return out * wplus.any((1, 2), keepdims=True)


def _layout(spec: MapperSpec, sink: bool) -> _Linear | _Full:
    linear = spec.kind == "linear" and spec.num_tokens == _LINEAR_TOKENS and not sink
    return _Linear(spec) if linear else _Full(spec, sink)


@lru_cache(maxsize=8)
def _mapper_table(spec: MapperSpec) -> tuple[Entry, ...]:
    return tuple(derive_table(nn.meta.unbox(mapper_shapes(IdentityMapper(spec)))))


def _check_sink(norm_bias: np.ndarray, sink: bool) -> None:
    if sink and norm_bias.any():
        raise ValueError(
            f"expected a mapper whose LayerNorm has no bias beside a sink, got up to {np.abs(norm_bias).max():.2g}; a token "
            "of an IP-Adapter can't be zero then: train with ('^mapper/norm/bias$', 'frozen') as the first parameter rule"
        )


def _gelu(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _same(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal; to rounding where a column is computed."""
    if name != "proj.2.weight":
        return np.array_equal(found, expected)
    tolerance = 32 * float(jnp.finfo(found.dtype).eps) * np.abs(expected).max()
    return bool((np.abs(found.astype(np.float64) - expected.astype(np.float64)) <= tolerance).all())
