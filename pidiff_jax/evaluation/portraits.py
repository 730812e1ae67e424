"""The embedded world's judges, held-out people and held-out prompts, for `evaluate_identity`."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline import portraits
from data_pipeline.portraits_data import pictures, wplus_codes
from data_pipeline.tokenizer import portraits_tokenizer, tokenize
from pidiff_jax import embedded, embedded_faces
from pidiff_jax.evaluation.identity import Judges, People, Prompts
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.segmenter import Segmenter

Split = Literal["validation", "test"]
NUM_CLASSES = tuple(len(values) for values in portraits.SCENE_ATTRIBUTES.values())


def load_judges(folder: Path | str | None = None) -> Judges:
    """The shipped recogniser, scene classifier and segmenter, or those of `folder`.

    Raises:
        FileNotFoundError: a file of weights is missing.
    """
    weights = {name: embedded.load_weights(name, folder)[name] for name in ("recogniser", "scenes", "segmenter")}
    recogniser = ArcFace(embedded_faces.RECOGNISER)
    classifier = ArcFace(embedded_faces.scene_spec(sum(NUM_CLASSES)))
    segmenter = Segmenter(embedded_faces.SEGMENTER)

    def recognise(pixels: Float[Array, "b h w 3"]) -> Array:
        return recogniser.apply({"params": weights["recogniser"]}, pixels * 2.0 - 1.0)

    def classify(pixels: Float[Array, "b h w 3"]) -> Array:
        logits = classifier.apply({"params": weights["scenes"]}, pixels * 2.0 - 1.0, method="logits")
        edges = np.cumsum(NUM_CLASSES)[:-1]
        return jnp.stack([part.argmax(-1) for part in jnp.split(logits, edges, axis=-1)], axis=-1)

    def segment(pixels: Float[Array, "b h w 3"]) -> Array:
        return jax.nn.sigmoid(segmenter.apply({"params": weights["segmenter"]}, pixels * 2.0 - 1.0))

    return Judges(recogniser=jax.jit(recognise), scene=jax.jit(classify), face_mask=jax.jit(segment))


def held_out_people(split: Split, count: int, encode_wplus: Callable) -> People:
    """People that no training has seen: W+ codes from an aligned photograph, the gallery from a wild one.

    encode_wplus: pixels in [-1, 1] to W+ codes.
    """
    references = pictures(split, count, 1, "aligned")["pixels"]
    gallery = pictures(split, count, 1, "wild", first_picture=1)["pixels"]
    return People(
        references=references.astype(np.float32) / 255.0,
        gallery=gallery.astype(np.float32) / 255.0,
        wplus=wplus_codes(encode_wplus, references),
    )


def held_out_prompts(count: int, split: Split = "test") -> Prompts:
    """Prompts of scenes that no training picture shows, the wordings in turn; "test" and "validation" share none."""
    scenes = portraits.held_out_scenes(count, split)
    texts = tuple(portraits.caption(scene, index) for index, scene in enumerate(scenes))
    return Prompts(
        texts=texts,
        text_ids=tokenize(portraits_tokenizer(), texts),
        attributes=scenes,
        attribute_names=tuple(portraits.SCENE_ATTRIBUTES),
    )
