"""The UNet's self-attention, and its cross-attention to text and identity."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.kernels.attention import dot_product_attention
from pidiff_jax.models.identity_attention import identity_attention
from pidiff_jax.models.layers import Dense


@dataclass(frozen=True)
class IdentityAttentionSpec:
    """The identity branch of a UNet's cross-attentions.

    variant: "decoupled" shares the text attention's query (as IP-Adapter); "independent" has its own query, which reads
        what the text attention's reads; "residual" has its own query, which reads the text-attended feature (as
        w-plus-adapter).
    token_dim: width of the identity tokens.
    sink: adds a key with logit 0 and value 0, so that a position can decline the identity. Without it every position's
        weights sum to 1. The same as one more token of zeros, since keys and values have no biases.

    A "decoupled" adapter can be exported as an IP-Adapter, a "residual" one without a sink as a w-plus-adapter; an
    "independent" one can't be exported to other projects' formats; any leaves with a PyTorch pipeline of ours.
    """

    variant: str = "decoupled"
    token_dim: int = 768
    sink: bool = False

    def __post_init__(self):
        if self.variant not in ("decoupled", "independent", "residual"):
            raise ValueError(
                f"expected variant 'decoupled', 'independent' or 'residual', got {self.variant!r}; correct the identity "
                "spec"
            )


class Conditioning(NamedTuple):
    """What the cross-attentions read. `identity_scale` has one axis each for samples, rows, columns and tokens."""

    text_embeds: Float[Array, "b m d"]
    identity_tokens: Float[Array, "b t d_id"] | None = None
    identity_scale: Float[Array, "#b #h #w #t"] | None = None


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q, k, v = (project(name=f"to_{name}")(x) for name in "qkv")
        out = dot_product_attention(q, k, v, num_heads=self.num_heads)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out)


class CrossAttention(nn.Module):
    """Attention to the text and, where `identity` is given, to identity tokens; one output projection for their sum.

    The identity's part, with its sources, is `identity_attention`.
    """

    num_heads: int
    identity: IdentityAttentionSpec | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        text_embeds: Float[Array, "b m d2"],
        identity_tokens: Float[Array, "b t d_id"] | None = None,
        identity_scale: Float[Array, "#b #n #t"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n t"] | None]:
        """Returns the output and the identity attention's strength, averaged over heads (None without tokens).

        Where `identity_scale` is 0 for all tokens, the output is bitwise that without identity.
        """
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q = project(name="to_q")(x)
        k, v = (project(name=f"to_{name}")(text_embeds) for name in "kv")
        out, strength = dot_product_attention(q, k, v, num_heads=self.num_heads), None
        identity = self.identity
        if identity is not None and identity_tokens is None and self.is_initializing():
            identity_tokens = jnp.zeros((x.shape[0], 1, identity.token_dim))
        if identity is not None and identity_tokens is not None:
            if identity.variant == "decoupled":
                query = q
            else:
                query = project(name="to_q_id")(x if identity.variant == "independent" else out)
            keys, values = (project(name=f"to_{name}_id")(identity_tokens) for name in "kv")
            out, strength = identity_attention(
                out, query, keys, values, identity_scale, num_heads=self.num_heads, sink=identity.sink
            )
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out), strength
