"""From W+ codes to identity tokens."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.models.layers import Dense, LayerNorm


@dataclass(frozen=True)
class MapperSpec:
    """Form and sizes of an `IdentityMapper`.

    kind: "linear", or "mlp" with a hidden layer of its own for each group.
    groups: (start, end) layers of W+, without gaps or overlaps.
    tokens_per_group: tokens that each group becomes; they follow each other, so that all tokens keep the order of W+.
    hidden_width: units of each group's hidden layer; None where there is none.

    Raises:
        ValueError: groups with gaps or overlaps, no tokens, or a hidden layer that the kind doesn't have or lacks.
    """

    groups: tuple[tuple[int, int], ...] = ((0, 4), (4, 8), (8, 12), (12, 18))
    wplus_dim: int = 512
    token_dim: int = 768
    tokens_per_group: int = 1
    kind: str = "linear"
    hidden_width: int | None = None

    def __post_init__(self):
        ends = [0, *(end for _, end in self.groups)]
        gaps = [start for (start, _), previous in zip(self.groups, ends, strict=False) if start != previous]
        if not self.groups or gaps or any(end <= start for start, end in self.groups):
            raise ValueError(
                f"expected groups of consecutive W+ layers starting at 0, like ((0, 4), (4, 8)), got {self.groups}; "
                "close the gaps"
            )
        if self.tokens_per_group < 1:
            raise ValueError(f"expected at least 1 token per group, got {self.tokens_per_group}; give more")
        if self.kind not in ("linear", "mlp"):
            raise ValueError(f"expected kind 'linear' or 'mlp', got {self.kind!r}; correct it")
        if self.kind == "linear" and self.hidden_width is not None:
            raise ValueError(
                f"expected hidden_width None of the kind 'linear', got {self.hidden_width}; choose the kind 'mlp'"
            )
        if self.kind == "mlp" and (self.hidden_width is None or self.hidden_width < 1):
            raise ValueError(
                f"expected hidden_width of at least 1 of the kind 'mlp', got {self.hidden_width}; give one"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of all groups."""
        return len(self.groups) * self.tokens_per_group

    @property
    def num_layers(self) -> int:
        """W+ layers that are read."""
        return self.groups[-1][1]


class IdentityMapper(nn.Module):
    """Each group g of W+ layers becomes tokens j: a linear map without bias, then a LayerNorm that all tokens share.

        linear: token_gj = LayerNorm(A_gj w_g)
        mlp:    token_gj = LayerNorm(A_gj (gelu(B_g w_g + b_g) - gelu(b_g)))

    The zero code, which stands for "no identity", gives the LayerNorm's bias as every token, whatever b is.

    Source: w-plus-adapter, `WProjModel` (layer groups, projections and normalisation), where a group has one token; the
    hidden layer is ours.
    """

    spec: MapperSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, wplus: Float[Array, "b l d"]) -> Float[Array, "b t d_id"]:
        """Returns the tokens.

        Raises:
            ValueError: codes of another size than the spec's.
        """
        spec = self.spec
        if wplus.shape[1:] != (spec.num_layers, spec.wplus_dim):
            raise ValueError(
                f"expected W+ codes of shape (b, {spec.num_layers}, {spec.wplus_dim}), got {wplus.shape}; the mapper's "
                "groups must cover the encoder's layers"
            )
        tokens = []
        for i, (start, end) in enumerate(spec.groups):
            group, axes = wplus[:, start:end].reshape(len(wplus), -1), ("embed", "mlp")
            if spec.hidden_width is not None:
                hidden = Dense(spec.hidden_width, axes=axes, dtype=self.dtype, name=f"hidden_{i}")
                nothing = jnp.zeros_like(group[:1])
                group, axes = nn.gelu(hidden(group), approximate=False), axes[::-1]
                group -= nn.gelu(hidden(nothing), approximate=False)
            width = spec.tokens_per_group * spec.token_dim
            project = Dense(width, use_bias=False, axes=axes, dtype=self.dtype, name=f"proj_{i}")
            tokens.append(project(group).reshape(len(wplus), spec.tokens_per_group, spec.token_dim))
        return LayerNorm(dtype=self.dtype, name="norm")(jnp.concatenate(tokens, axis=1))
