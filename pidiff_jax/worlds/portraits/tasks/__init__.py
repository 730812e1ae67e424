"""The runs that make the embedded world's own weights, one file each: the losses, and how the config becomes a run."""

from pidiff_jax.worlds.portraits.tasks.autoencoder import build_autoencoder
from pidiff_jax.worlds.portraits.tasks.judges import (
    build_landmarks,
    build_realism,
    build_recogniser,
    build_scenes,
    build_segmenter,
)
from pidiff_jax.worlds.portraits.tasks.text_to_image import build_text_to_image
from pidiff_jax.worlds.portraits.tasks.wplus import build_wplus

BUILDERS = {
    "autoencoder": build_autoencoder,
    "text_to_image": build_text_to_image,
    "wplus": build_wplus,
    "recogniser": build_recogniser,
    "scenes": build_scenes,
    "segmenter": build_segmenter,
    "landmarks": build_landmarks,
    "realism": build_realism,
}
