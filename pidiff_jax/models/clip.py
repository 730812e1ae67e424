"""CLIP text encoder as Stable Diffusion uses it: token ids to the hidden states a UNet attends to."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pidiff_jax.kernels.attention import dot_product_attention
from pidiff_jax.models.layers import Dense, LayerNorm, LogicalAxes


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": _exact_gelu}


@dataclass(frozen=True)
class ClipTextSpec:
    """Sizes of a `ClipText`; `activation` is a key of `ACTIVATIONS`."""

    vocab_size: int = 49408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_length: int = 77
    activation: str = "quick_gelu"

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"expected activation to be one of {sorted(ACTIVATIONS)}, got {self.activation!r}; only these "
                "are implemented"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"expected width divisible by num_heads, got {self.width} and {self.num_heads}; change one"
            )

    @classmethod
    def sd15(cls) -> "ClipTextSpec":
        """CLIP ViT-L/14, the text encoder of Stable Diffusion 1.x."""
        return cls()

    @classmethod
    def sd21(cls) -> "ClipTextSpec":
        """OpenCLIP ViT-H/14 without its last layer, as in Stable Diffusion 2.x (which reads the penultimate one)."""
        return cls(width=1024, num_layers=23, num_heads=16, mlp_width=4096, activation="gelu")


class ClipText(nn.Module):
    """Pre-norm transformer with a causal mask over token ids; padding is attended to like any other token.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; transformers models/clip/modeling_clip.py.
    """

    spec: ClipTextSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text_ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        """Returns the hidden states the UNet reads.

        Raises:
            ValueError: more tokens than `spec.max_length`.
        """
        spec = self.spec
        if text_ids.shape[1] > spec.max_length:
            raise ValueError(
                f"expected at most {spec.max_length} tokens, got {text_ids.shape[1]}; tokenise with the model's own "
                "tokenizer"
            )
        states = ClipEmbeddings(spec, self.dtype, name="embeddings")(text_ids)
        states = ClipEncoder(spec, self.dtype, name="encoder")(states)
        return LayerNorm(dtype=self.dtype, name="final_layer_norm")(states)


class ClipEmbeddings(nn.Module):
    """Sum of token and learned position embeddings."""

    spec: ClipTextSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text_ids: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        spec = self.spec
        tokens = Embedding(spec.vocab_size, spec.width, ("vocab", "embed"), self.dtype, name="token_embedding")
        positions = Embedding(spec.max_length, spec.width, (None, "embed"), self.dtype, name="position_embedding")
        return tokens(text_ids) + positions(jnp.arange(text_ids.shape[1]))


class Embedding(nn.Module):
    """Rows of a table by index; an index outside the table gives NaN, so that a wrong tokenizer can't go unnoticed."""

    num_embeddings: int
    features: int
    axes: LogicalAxes
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), self.axes)
        table = self.param("embedding", init, (self.num_embeddings, self.features))
        return jnp.take(table, ids, axis=0, mode="fill").astype(self.dtype)


class ClipEncoder(nn.Module):
    """The stack of layers."""

    spec: ClipTextSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        num_tokens = x.shape[1]
        causal = jnp.tril(jnp.ones((1, 1, num_tokens, num_tokens), bool))
        for layer in range(self.spec.num_layers):
            x = ClipLayer(self.spec, self.dtype, name=f"layers_{layer}")(x, causal)
        return x


class ClipLayer(nn.Module):
    """Self-attention and MLP, each behind a LayerNorm and beside a residual connection."""

    spec: ClipTextSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"], mask: Array) -> Float[Array, "b m d"]:
        normed = LayerNorm(dtype=self.dtype, name="layer_norm1")(x)
        x = x + ClipAttention(self.spec.num_heads, self.dtype, name="self_attn")(normed, mask)
        normed = LayerNorm(dtype=self.dtype, name="layer_norm2")(x)
        return x + ClipMLP(self.spec, self.dtype, name="mlp")(normed)


class ClipAttention(nn.Module):
    """Multi-head self-attention; `mask` (1, 1, n, m) is True where a query may attend."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"], mask: Array) -> Float[Array, "b m d"]:
        d = x.shape[-1]
        q, k, v = (Dense(d, axes=("embed", "heads"), dtype=self.dtype, name=f"{n}_proj")(x) for n in "qkv")
        out = dot_product_attention(q, k, v, num_heads=self.num_heads, mask=mask)
        return Dense(d, axes=("heads", "embed"), dtype=self.dtype, name="out_proj")(out)


class ClipMLP(nn.Module):
    """Two dense layers around the activation."""

    spec: ClipTextSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        h = Dense(self.spec.mlp_width, axes=("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        h = ACTIVATIONS[self.spec.activation](h)
        return Dense(x.shape[-1], axes=("mlp", "embed"), dtype=self.dtype, name="fc2")(h)
