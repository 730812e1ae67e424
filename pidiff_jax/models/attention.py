"""The UNet's self-attention, and its cross-attention to text and identity."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pidiff_jax.kernels.attention import attention_weights, dot_product_attention, split_heads
from pidiff_jax.models.layers import Dense


@dataclass(frozen=True)
class IdentityAttentionSpec:
    """The identity branch of a UNet's cross-attentions.

    variant: "decoupled" shares the text attention's query (as IP-Adapter); "independent" has its own query, which reads
        what the text attention's reads; "residual" has its own query, which reads the text-attended feature (as
        w-plus-adapter).
    token_dim: width of the identity tokens.
    sink: adds a key with logit 0 and value 0, so that a position can decline the identity. Without it every position's
        weights sum to 1.

    An "independent" adapter, or one with a sink, can't be exported to other projects' formats.
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

    Source: decoupled: Ye et al. 2023 (arXiv 2308.06721), equation 5; residual: Li et al. 2024 (arXiv 2311.17461),
    section 3.
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

        The strength of a token at a position is its attention weight times the norm of its value: what it can add there.
        Weights alone sum to 1 at every position and so can't say where the identity acts.
        Source: Kobayashi et al. 2020 (arXiv 2004.10102), section 3.

        Where `identity_scale` is 0 for all tokens, the output is bitwise that without identity.
        """
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q = project(name="to_q")(x)
        k, v = (project(name=f"to_{name}")(text_embeds) for name in "kv")
        out, strength = dot_product_attention(q, k, v, num_heads=self.num_heads), None
        if self.identity is not None and identity_tokens is None and self.is_initializing():
            identity_tokens = jnp.zeros((x.shape[0], 1, self.identity.token_dim))
        if identity_tokens is not None:
            if self.identity.variant == "decoupled":
                query = q
            else:
                query = project(name="to_q_id")(x if self.identity.variant == "independent" else out)
            out, strength = self._add_identity(out, query, identity_tokens, identity_scale, project)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out), strength

    def _add_identity(self, text_out, query, tokens, scale, project):
        k, v = (project(name=f"to_{name}_id")(tokens) for name in "kv")
        q, k, v = (split_heads(array, self.num_heads) for array in (query, k, v))
        weights = attention_weights(q, k, sink=self.identity.sink)
        if scale is None:
            scaled = weights
        else:
            scaled = weights * scale[:, None].astype(weights.dtype)
        out = text_out + jnp.einsum("bknm,bmke->bnke", scaled, v).reshape(text_out.shape)
        if scale is not None:
            # Selecting, not multiplying: 0 times an overflow would be NaN, and -0 + 0 isn't -0.
            out = jnp.where((scale == 0).all(-1, keepdims=True), text_out, out)
        norms = jnp.sqrt(jnp.square(v.astype(jnp.float32)).sum(-1) + 1e-12)
        return out, jnp.einsum("bknt,btk->bnt", weights.astype(jnp.float32), norms) / self.num_heads
