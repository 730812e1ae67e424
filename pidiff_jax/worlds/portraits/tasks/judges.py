"""Trains the judges, on people that no other training sees.

A recogniser, a scene classifier, a segmenter, a finder of landmarks, and the features in which realism is measured.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pidiff_jax.arrays import signed_pixels
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.segmenter import Segmenter
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.train.step import LossFn
from pidiff_jax.worlds.portraits import networks
from pidiff_jax.worlds.portraits.judges import read_landmarks
from pidiff_jax.worlds.portraits.renderer import NUM_IDENTITY_PARAMETERS
from pidiff_jax.worlds.portraits.sources import (
    checked_numbers,
    landmark_source,
    mask_source,
    pair_source,
    picture_source,
    rendering_source,
)
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
        logits = self.network.apply({"params": params["segmenter"]}, pixels)[..., 0]
        mask = batch["head_mask"].astype(jnp.float32) / 255.0
        b, h, w = logits.shape
        mask = mask.reshape(b, h, mask.shape[1] // h, w, mask.shape[2] // w).mean((2, 4))
        loss = (jax.nn.softplus(logits) - mask * logits).mean((1, 2))
        found, wanted = logits > 0, mask > 0.5
        return {"segmentation": loss}, {"iou": (found & wanted).sum() / jnp.maximum((found | wanted).sum(), 1)}


@dataclass(frozen=True)
class LandmarksTask:
    """Find the landmarks. Batch: pixels uint8, landmarks (b, 5, 2) float32, pixels (x, y).

    `network` gives one map a landmark, each a distribution over positions.
    """

    network: Segmenter

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `position` (cross-entropy, mean over landmarks); metric `within_2_px` of the eyes."""
        pixels = signed_pixels(batch["pixels"])
        size = pixels.shape[1]
        pixels = degrade(pixels, key) if train else pixels
        logits = self.network.apply({"params": params["landmarks"]}, pixels)
        log_shares = jax.nn.log_softmax(logits.reshape(len(logits), -1, logits.shape[-1]), axis=1)
        wanted = bilinear_maps(batch["landmarks"] / size, logits.shape[1]).reshape(log_shares.shape)
        found, _ = read_landmarks(logits, size)
        near = jnp.linalg.norm(found - batch["landmarks"], axis=-1) < 2.0
        return {"position": -(wanted * log_shares).sum(1).mean(-1)}, {"within_2_px": near[:, :2].all(-1).mean()}


def bilinear_maps(points: Float[Array, "b n 2"], size: int) -> Float[Array, "b h w n"]:
    """Shares of the four positions around points (x, y) in [0, 1] of the picture; each map adds up to 1 inside it."""
    centres = jnp.arange(size) + 0.5
    near = jnp.maximum(1.0 - jnp.abs(points[..., None] * size - centres), 0.0)  # (b, n, 2, size)
    return jnp.einsum("bny,bnx->byxn", near[:, :, 1], near[:, :, 0])


@dataclass(frozen=True)
class RealismTask:
    """See what a picture was rendered from. Batch: pixels uint8, identity (b, p), scene (b, a) int32.

    Pictures aren't degraded: the features shall notice blur. `network` gives the identity parameters, then the logits of the
    scene's attributes.
    """

    network: ArcFace
    num_classes: tuple[int, ...]

    def losses(self, params: dict, batch: dict, key: PRNGKeyArray, train: bool = True) -> tuple[dict, dict]:
        """Per-example `regression` (squared error, summed over parameters) and `classification`; metric `r2`."""
        del key, train
        values = self.network.apply({"params": params["realism"]}, signed_pixels(batch["pixels"]), method="logits")
        identity = batch["identity"]
        error = jnp.square(values[:, : identity.shape[1]] - identity)
        loss: Array | float = 0.0
        for index, logits in enumerate(split_logits(values[:, identity.shape[1] :], self.num_classes)):
            loss -= jnp.take_along_axis(jax.nn.log_softmax(logits), batch["scene"][:, index, None], 1)[:, 0]
        return {"regression": error.sum(-1), "classification": loss}, {"r2": 1.0 - error.mean() / identity.var()}


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


def build_landmarks(config: Any) -> Experiment:
    """The run that makes landmarks.safetensors, the judge of whether a face has eyes."""
    network, numbers = Segmenter(networks.LANDMARKS), checked_numbers(config.data, "judges")
    sources = Sources(
        lambda: landmark_source("judges", *numbers),
        lambda: landmark_source("validation", 256, 1),
    )
    record = {"pixels": BYTE_PICTURE, "landmarks": jax.ShapeDtypeStruct((5, 2), np.float32)}
    return _judge(config, "landmarks", network, LandmarksTask(network).losses, sources, record)


def build_realism(config: Any) -> Experiment:
    """The run that makes realism.safetensors, the features in which drawn and rendered pictures are compared."""
    network, numbers = ArcFace(networks.REALISM), checked_numbers(config.data, "judges")
    sources = Sources(
        lambda: rendering_source("judges", *numbers),
        lambda: rendering_source("validation", 256, 1),
    )
    record = {
        "pixels": BYTE_PICTURE,
        "identity": jax.ShapeDtypeStruct((NUM_IDENTITY_PARAMETERS,), np.float32),
        "scene": PICTURE_RECORD["scene"],
    }
    return _judge(config, "realism", network, RealismTask(network, networks.NUM_CLASSES).losses, sources, record)


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
