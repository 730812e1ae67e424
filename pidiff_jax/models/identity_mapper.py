"""From W+ codes to identity tokens."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.models.layers import Dense, LayerNorm


@dataclass(frozen=True)
class MapperSpec:
    """Sizes of an `IdentityMapper`.

    groups: (start, end) layers of W+, without gaps or overlaps.
    tokens_per_group: tokens that each group becomes; they follow each other, so that all tokens keep the order of W+.

    Raises:
        ValueError: groups with gaps or overlaps, or no tokens.
    """

    groups: tuple[tuple[int, int], ...] = ((0, 4), (4, 8), (8, 12), (12, 18))
    wplus_dim: int = 512
    token_dim: int = 768
    tokens_per_group: int = 1

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

    @property
    def num_tokens(self) -> int:
        """Tokens of all groups."""
        return len(self.groups) * self.tokens_per_group

    @property
    def num_layers(self) -> int:
        """W+ layers that are read."""
        return self.groups[-1][1]


class IdentityMapper(nn.Module):
    """Each group of W+ layers becomes tokens: a linear map without bias, then a LayerNorm that all tokens share.

    Without biases the zero code, which stands for "no identity", gives the LayerNorm's bias as tokens.

    Source: w-plus-adapter, `WProjModel` (layer groups, projections and normalisation), where a group has one token.
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
            group = wplus[:, start:end].reshape(len(wplus), -1)
            width = spec.tokens_per_group * spec.token_dim
            project = Dense(width, use_bias=False, axes=("embed", "mlp"), dtype=self.dtype, name=f"proj_{i}")
            tokens.append(project(group).reshape(len(wplus), spec.tokens_per_group, spec.token_dim))
        return LayerNorm(dtype=self.dtype, name="norm")(jnp.concatenate(tokens, axis=1))
