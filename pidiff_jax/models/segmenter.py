"""A small network of maps: where in a picture the head is, or each landmark of the face."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pidiff_jax.models.e4e import upsample_aligned
from pidiff_jax.models.ir_se import IRSE, IRSESpec
from pidiff_jax.models.layers import Conv


@dataclass(frozen=True)
class SegmenterSpec:
    """Sizes of a `Segmenter`; maps come at the resolution of the backbone's `output_level`-th feature map."""

    backbone: IRSESpec = IRSESpec(units=(1, 1, 1, 1), widths=(16, 32, 48, 64))
    width: int = 32
    output_level: int = 1
    num_maps: int = 1


class Segmenter(nn.Module):
    """Pictures in [-1, 1] to maps of logits, half or a quarter as large.

    Source: our own; a feature pyramid (Lin et al. 2017, arXiv 1612.03144) on the IR-SE backbone.
    """

    spec: SegmenterSpec = SegmenterSpec()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 m"]:
        features = IRSE(self.spec.backbone, name="backbone")(pixels)[self.spec.output_level :]
        size = features[0].shape[1]
        total = jnp.zeros(())
        for level, feature in enumerate(features):
            total += upsample_aligned(Conv(self.spec.width, (1, 1), padding=0, name=f"lateral_{level}")(feature), size)
        return Conv(self.spec.num_maps, name="head")(nn.relu(total))
