"""ArcFace: a face recogniser on the IR-SE backbone."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pidiff_jax.models.ir_se import IRSE, BatchNorm, IRSESpec
from pidiff_jax.models.layers import Dense


@dataclass(frozen=True)
class ArcFaceSpec:
    """Sizes of an `ArcFace`; the defaults are the published IR-SE50 at 112 px.

    pooling "flatten" is the published output layer; "gap" averages over space instead, for small networks.
    """

    backbone: IRSESpec = IRSESpec()
    embedding_dim: int = 512
    input_size: int = 112
    pooling: str = "flatten"


class ArcFace(nn.Module):
    """Faces in [-1, 1] to unit embeddings (b, d), whose dot product is the identity similarity.

    Source: Deng et al. 2019 (arXiv 1801.07698); output layer of the insightface PyTorch port.
    """

    spec: ArcFaceSpec

    def setup(self):
        if self.spec.pooling not in ("flatten", "gap"):
            raise ValueError(f"expected pooling 'flatten' or 'gap', got {self.spec.pooling!r}; correct the spec")
        self.backbone = IRSE(self.spec.backbone)
        self.output_layer_0 = BatchNorm()
        self.output_layer_3 = Dense(self.spec.embedding_dim)
        if self.spec.pooling == "flatten":
            self.output_layer_4 = BatchNorm()

    def features(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
        """What the backbone sees, normalised, the mean over space."""
        return self.output_layer_0(self.backbone(pixels)[-1]).mean((1, 2))

    def logits(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The output layer without normalisation."""
        size = self.spec.input_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"expected pictures of {size}x{size}, got {pixels.shape[1:3]}; resize them")
        x = self.output_layer_0(self.backbone(pixels)[-1])
        if self.spec.pooling == "gap":
            return self.output_layer_3(x.mean((1, 2)))
        # PyTorch flattens channels first.
        x = self.output_layer_3(x.transpose(0, 3, 1, 2).reshape(len(x), -1))
        return self.output_layer_4(x)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = self.logits(pixels)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
