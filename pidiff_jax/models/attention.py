"""The UNet's self-attention, and its cross-attention to text and identity."""

from collections.abc import Callable
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


# Collection of the keys and values that don't change while a picture is drawn: `apply` with it as mutable fills it, and later
# calls that are given it compute none of them.
CONDITIONS = "conditions"


class Conditioning(NamedTuple):
    """What the cross-attentions read. `identity_scale` has one axis each for samples, rows, columns and tokens (of all people).

    normalised: see `as_long_as` of `identity_attention`.
    """

    text_embeds: Float[Array, "b m d"]
    identity_tokens: Float[Array, "b t d_id"] | Float[Array, "b p t d_id"] | None = None
    identity_scale: Float[Array, "#b #h #w #pt"] | None = None
    normalised: bool = False


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
        cond: Conditioning,
        identity_scale: Float[Array, "#b #n #pt"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n pt"] | None]:
        """Returns the output and the identity attention's strength, averaged over heads (None without tokens).

        Where `identity_scale`, that of this resolution, is 0 for all tokens, the output is bitwise that without identity.
        Several people attend each by themselves: what they add is added up.
        """
        project = partial(Dense, x.shape[-1], use_bias=False, axes=("embed", "heads"), dtype=self.dtype)
        q = project(name="to_q")(x)
        k, v = self._remembered("text", lambda: [project(name=f"to_{name}")(cond.text_embeds) for name in "kv"])
        out, strength = dot_product_attention(q, k, v, num_heads=self.num_heads), None
        identity, tokens = self.identity, cond.identity_tokens
        if identity is not None and tokens is None and self.is_initializing():
            tokens = jnp.zeros((x.shape[0], 1, identity.token_dim))
        if identity is not None and tokens is not None:
            if identity.variant == "decoupled":
                query = q
            else:
                query = project(name="to_q_id")(x if identity.variant == "independent" else out)
            people = tokens if tokens.ndim == 4 else tokens[:, None]
            keys, values = self._remembered(
                "identity", lambda: [project(name=f"to_{name}_id")(people) for name in "kv"]
            )
            text_out, strengths = out, []
            for person in range(people.shape[1]):
                out, strength = identity_attention(
                    out, query, keys[:, person], values[:, person], _of_person(identity_scale, person, people.shape[2]),
                    num_heads=self.num_heads, sink=identity.sink, as_long_as=text_out if cond.normalised else None,
                )  # fmt: skip
                strengths.append(strength)
            strength = jnp.concatenate(strengths, axis=-1)
        return Dense(x.shape[-1], axes=("heads", "embed"), dtype=self.dtype, name="to_out_0")(out), strength

    def _remembered(self, name: str, compute: Callable[[], list[Array]]) -> list[Array]:
        """What `compute` gives, or gave when the collection of conditions was filled."""
        if self.has_variable(CONDITIONS, name):
            return self.get_variable(CONDITIONS, name)
        arrays = compute()
        if self.is_mutable_collection(CONDITIONS) and not self.is_initializing():
            self.put_variable(CONDITIONS, name, arrays)
        return arrays


def _of_person(
    scale: Float[Array, "#b #n #pt"] | None, person: int, num_tokens: int
) -> Float[Array, "#b #n #t"] | None:
    """The part of one person in a scale that has all people's tokens, or one number for all of them."""
    if scale is None or scale.shape[-1] == 1:
        return scale
    return scale[..., person * num_tokens : (person + 1) * num_tokens]
