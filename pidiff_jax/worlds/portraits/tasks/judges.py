"""Trains the judges, on people that no other training sees: a recogniser, a scene classifier and a segmenter."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.segmenter import Segmenter
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.train.step import LossFn
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.sources import checked_numbers, mask_source, pair_source, picture_source
from pidiff_jax.worlds.portraits.tasks.common import (
    BYTE_PICTURE,
    ONE_PICTURE,
    PICTURE_RECORD,
    calibrated,
    weights_experiment,
)


def degrade(pixels: Float[Array, "b h w c"], key: PRNGKeyArray) -> Float[Array, "b h w c"]:
    """Softens and disturbs pictures at random, so that judges don't punish a generator's slight blur or noise."""
    key_blur, key_noise, key_amount = jax.random.split(key, 3)
    blurred = pixels
    for axis in (1, 2):
        blurred = 0.5 * blurred + 0.25 * (jnp.roll(blurred, 1, axis) + jnp.roll(blurred, -1, axis))
    amount = jax.random.uniform(key_blur, (len(pixels), 1, 1, 1))
    strength = 0.06 * jax.random.uniform(key_amount, (len(pixels), 1, 1, 1))
    return pixels + amount * (blurred - pixels) + strength * jax.random.normal(key_noise, pixels.shape)


@dataclass(frozen=True)
class RecogniserTask:
    """Two pictures of one person attract, pictures of different people repel (InfoNCE, both directions).

    Batch: pixels (b, h, w, 3) and other_pixels, another picture of the same person, uint8.
    """

    network: ArcFace
    temperature: float = 0.07

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `contrastive`; metric `accuracy` of finding the other picture within the batch."""
        keys = jax.random.split(key)
        pictures = [signed_pixels(batch["pixels"]), signed_pixels(batch["other_pixels"])]
        if train:
            pictures = [degrade(x, k) for x, k in zip(pictures, keys, strict=True)]
        first, second = (self.network.apply({"params": params["recogniser"]}, x) for x in pictures)
        logits = first @ second.T / self.temperature
        diagonal = jnp.diagonal(logits)
        loss = 0.5 * (jax.nn.logsumexp(logits, 1) + jax.nn.logsumexp(logits, 0)) - diagonal
        return {"contrastive": loss}, {"accuracy": (logits.argmax(1) == jnp.arange(len(logits))).mean()}


@dataclass(frozen=True)
class SceneTask:
    """Classify each scene attribute. Batch: pixels uint8, scene (b, a) int32.

    `network` gives one vector of logits, the attributes' classes one after another.
    """

    network: ArcFace
    num_classes: tuple[int, ...]

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `classification` (cross-entropy, summed over attributes); metric `accuracy`."""
        pixels = signed_pixels(batch["pixels"])
        pixels = degrade(pixels, key) if train else pixels
        logits = split_logits(
            self.network.apply({"params": params["scenes"]}, pixels, method="logits"), self.num_classes
        )
        loss: Array | float = 0.0
        correct = []
        for index, values in enumerate(logits):
            labels = batch["scene"][:, index]
            loss -= jnp.take_along_axis(jax.nn.log_softmax(values), labels[:, None], 1)[:, 0]
            correct.append((values.argmax(-1) == labels).mean())
        return {"classification": loss}, {"accuracy": jnp.stack(correct).mean()}


def split_logits(logits: Float[Array, "b n"], num_classes: tuple[int, ...]) -> list[Float[Array, "b c"]]:
    """Cuts the classifier's output into one array per attribute."""
    edges = [sum(num_classes[: i + 1]) for i in range(len(num_classes) - 1)]
    return jnp.split(logits, edges, axis=-1)


@dataclass(frozen=True)
class SegmenterTask:
    """Find the head. Batch: pixels uint8, head_mask (b, h, w) uint8."""

    network: Segmenter

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `segmentation` (binary cross-entropy per position); metric `iou` of the masks cut at one half."""
        pixels = signed_pixels(batch["pixels"])
        pixels = degrade(pixels, key) if train else pixels
        logits = self.network.apply({"params": params["segmenter"]}, pixels)
        mask = batch["head_mask"].astype(jnp.float32) / 255.0
        b, h, w = logits.shape
        mask = mask.reshape(b, h, mask.shape[1] // h, w, mask.shape[2] // w).mean((2, 4))
        loss = (jax.nn.softplus(logits) - mask * logits).mean((1, 2))
        found, wanted = logits > 0, mask > 0.5
        return {"segmentation": loss}, {"iou": (found & wanted).sum() / jnp.maximum((found | wanted).sum(), 1)}


def build_recogniser(config: Any) -> Experiment:
    """The run that makes recogniser.safetensors, the judge of identity."""
    network, numbers = ArcFace(networks.RECOGNISER), checked_numbers(config.data, "judges")
    sources = Sources(
        lambda: pair_source("judges", *numbers),
        lambda: pair_source("validation", 256, 1),
    )
    record = {"pixels": BYTE_PICTURE, "other_pixels": BYTE_PICTURE}
    return _judge(config, "recogniser", network, RecogniserTask(network).losses, sources, record)


def build_scenes(config: Any) -> Experiment:
    """The run that makes scenes.safetensors, the judge of prompts."""
    network, numbers = ArcFace(networks.SCENES), checked_numbers(config.data, "judges")
    sources = Sources(
        lambda: picture_source("judges", *numbers, ("wild",)),
        lambda: picture_source("validation", 256, 1, ("wild",)),
    )
    return _judge(config, "scenes", network, SceneTask(network, networks.NUM_CLASSES).losses, sources, PICTURE_RECORD)


def build_segmenter(config: Any) -> Experiment:
    """The run that makes segmenter.safetensors, the judge of where the head is."""
    network, numbers = Segmenter(networks.SEGMENTER), checked_numbers(config.data, "judges")
    sources = Sources(
        lambda: mask_source("judges", *numbers),
        lambda: mask_source("validation", 256, 1),
    )
    mask = jax.ShapeDtypeStruct(BYTE_PICTURE.shape[:2], BYTE_PICTURE.dtype)
    record = {"pixels": BYTE_PICTURE, "head_mask": mask}
    return _judge(config, "segmenter", network, SegmenterTask(network).losses, sources, record)


def _judge(config: Any, name: str, network: Any, losses: LossFn, sources: Sources, record: dict) -> Experiment:
    return weights_experiment(
        config,
        file=name,
        init=lambda: {name: network.init(jax.random.key(config.seed), jnp.zeros(ONE_PICTURE))["params"]},
        finish_init=lambda params: {name: calibrated(network, params[name], "judges", "wild")},
        losses=losses,
        sources=sources,
        record=record,
    )
