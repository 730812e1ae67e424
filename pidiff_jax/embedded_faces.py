"""The embedded networks of faces: the W+ encoder with its synthesis network, and the judges."""

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Array, Float

from pidiff_jax.embedded import NUM_WPLUS_LAYERS, RESOLUTION_PX, WPLUS_DIM, load_weights
from pidiff_jax.models.arcface import ArcFaceSpec
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec, encode_wplus
from pidiff_jax.models.ir_se import IRSESpec
from pidiff_jax.models.segmenter import SegmenterSpec
from pidiff_jax.models.stylegan2 import StyleGan2Spec

ENCODER = E4eSpec(
    backbone=IRSESpec(units=(1, 1, 2, 1), widths=(16, 32, 64, 96)), num_layers=NUM_WPLUS_LAYERS, wplus_dim=WPLUS_DIM,
    input_size=RESOLUTION_PX, style_width=48,
)  # fmt: skip
STYLEGAN2 = StyleGan2Spec(size=RESOLUTION_PX, style_dim=WPLUS_DIM, channels=(96, 96, 64, 48, 32))
RECOGNISER = ArcFaceSpec(
    backbone=IRSESpec(units=(1, 1, 2, 1), widths=(16, 32, 64, 96)),
    embedding_dim=64,
    input_size=RESOLUTION_PX,
)


def scene_spec(num_logits: int) -> ArcFaceSpec:
    """The scene classifier: a backbone like the recogniser's, pooled over all positions, giving logits."""
    return ArcFaceSpec(
        backbone=IRSESpec(units=(1, 1, 1, 1), widths=(16, 32, 48, 64)), embedding_dim=num_logits, input_size=RESOLUTION_PX,
        pooling="gap",
    )  # fmt: skip


SEGMENTER = SegmenterSpec()


def load_wplus_encoder(folder: Path | str | None = None) -> Callable[[Float[Array, "b h w 3"]], Float[Array, "b l d"]]:
    """The shipped W+ encoder, or that of `folder`, as a function of aligned faces in [-1, 1]."""
    weights = load_weights("wplus", folder)
    encoder = E4eEncoder(ENCODER)
    return lambda pixels: encode_wplus(encoder, weights["encoder"], weights["latent_avg"], pixels)
