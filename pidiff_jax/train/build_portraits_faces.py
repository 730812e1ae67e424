"""Builds the trainings of the embedded networks of faces: W+ space, recogniser, scene classifier."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from data_pipeline import portraits
from data_pipeline import portraits_data as data
from pidiff_jax import embedded, embedded_faces
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.e4e import E4eEncoder
from pidiff_jax.models.ir_se import calibrate
from pidiff_jax.models.segmenter import Segmenter
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.train.tasks.judges import RecogniserTask, SceneTask, SegmenterTask
from pidiff_jax.train.tasks.wplus import WPlusTask

_PIXELS = jnp.zeros((1, embedded.RESOLUTION_PX, embedded.RESOLUTION_PX, 3))


def _fresh(network: nn.Module, key: jax.Array, split: str, view: portraits.View) -> dict[str, Any]:
    """New parameters, with the statistics of the first pictures in every batch normalisation."""
    pixels = data.pictures(split, 64, 1, view)["pixels"]
    return calibrate(network, network.init(key, _PIXELS)["params"], jnp.asarray(pixels / 127.5 - 1.0, jnp.float32))


def build_wplus(config: Any) -> dict[str, Any]:
    """The W+ encoder and its synthesis network."""
    encoder, synthesis = E4eEncoder(embedded_faces.ENCODER), Synthesis(embedded_faces.STYLEGAN2)
    key_encoder, key_synthesis = jax.random.split(jax.random.key(config.seed))
    shape = (embedded.NUM_WPLUS_LAYERS, embedded.WPLUS_DIM)
    params = {
        "encoder": _fresh(encoder, key_encoder, "train", "aligned"),
        "synthesis": synthesis.init(key_synthesis, jnp.zeros((1, *shape)))["params"],
        "latent_avg": jnp.zeros(shape),
    }
    return {
        "params": params,
        "losses": WPlusTask(encoder, synthesis).losses,
        "train_source": lambda: data.picture_source(
            "train", config.data.num_people, config.data.pictures_per_person, ("aligned",)
        ),
        "validation_source": lambda: data.picture_source("validation", 128, 1, ("aligned",)),
    }


def build_recogniser(config: Any) -> dict[str, Any]:
    """The judge of identity."""
    network = ArcFace(embedded_faces.RECOGNISER)
    return {
        "params": {"recogniser": _fresh(network, jax.random.key(config.seed), "judges", "wild")},
        "losses": RecogniserTask(network).losses,
        "train_source": lambda: data.pair_source("judges", config.data.num_people, config.data.pictures_per_person),
        "validation_source": lambda: data.pair_source("validation", 256, 1),
    }


def build_scenes(config: Any) -> dict[str, Any]:
    """The judge of prompts."""
    classes = tuple(len(values) for values in portraits.SCENE_ATTRIBUTES.values())
    network = ArcFace(embedded_faces.scene_spec(sum(classes)))
    return {
        "params": {"scenes": _fresh(network, jax.random.key(config.seed), "judges", "wild")},
        "losses": SceneTask(network, classes).losses,
        "train_source": lambda: data.picture_source(
            "judges", config.data.num_people, config.data.pictures_per_person, ("wild",)
        ),
        "validation_source": lambda: data.picture_source("validation", 256, 1, ("wild",)),
    }


def build_segmenter(config: Any) -> dict[str, Any]:
    """The judge of where the head is."""
    network = Segmenter(embedded_faces.SEGMENTER)
    return {
        "params": {"segmenter": _fresh(network, jax.random.key(config.seed), "judges", "wild")},
        "losses": SegmenterTask(network).losses,
        "train_source": lambda: data.mask_source("judges", config.data.num_people, config.data.pictures_per_person),
        "validation_source": lambda: data.mask_source("validation", 256, 1),
    }
