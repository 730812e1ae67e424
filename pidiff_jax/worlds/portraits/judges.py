"""The embedded world's held-out people and prompts, and its judges."""

from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pidiff_jax.evaluation.subjects import JudgeFn, Judges, People, Prompts, check_references, mean_codes
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.segmenter import Segmenter
from pidiff_jax.worlds.portraits import networks, renderer
from pidiff_jax.worlds.portraits.sources import load_wplus_encoder, pictures, wplus_codes
from pidiff_jax.worlds.portraits.tokenizer import caption_ids
from pidiff_jax.worlds.portraits.weight_files import load_weights


class HeldOutPortraits:
    """People and prompts of a split; see `evaluation.subjects.HeldOut`."""

    def __init__(self, split: str):
        if split not in ("validation", "test"):
            raise ValueError(f"expected the split 'validation' or 'test', got {split!r}; others are trained on")
        self.split = split

    def judges(self) -> Judges:
        """The shipped recogniser, scene classifier and segmenter."""
        return self._judges

    @cached_property
    def _judges(self) -> Judges:
        return load_judges()

    def check_people(self, count: int) -> None:
        """See `HeldOut.check_people`."""
        renderer.person_ids(self.split, count)

    def people(self, count: int, num_references: int = 1, start: int = 0) -> People:
        """People that no training has seen."""
        return held_out_people(self.split, count, load_wplus_encoder(), num_references, start)

    def prompts(self, count: int) -> Prompts:
        """Prompts of scenes that no training picture shows."""
        return held_out_prompts(count, self.split)


def load_judges() -> Judges:
    """The shipped recogniser, scene classifier and segmenter.

    Raises:
        FileNotFoundError: a file of weights is missing.
    """
    weights = {name: load_weights(name)[name] for name in ("recogniser", "scenes", "segmenter")}
    recogniser, classifier = ArcFace(networks.RECOGNISER), ArcFace(networks.SCENES)
    segmenter = Segmenter(networks.SEGMENTER)

    def recognise(pixels: Float[Array, "b h w 3"]) -> Array:
        return recogniser.apply({"params": weights["recogniser"]}, pixels * 2.0 - 1.0)

    def classify(pixels: Float[Array, "b h w 3"]) -> Array:
        logits = classifier.apply({"params": weights["scenes"]}, pixels * 2.0 - 1.0, method="logits")
        edges = np.cumsum(networks.NUM_CLASSES)[:-1]
        return jnp.stack([part.argmax(-1) for part in jnp.split(logits, edges, axis=-1)], axis=-1)

    def segment(pixels: Float[Array, "b h w 3"]) -> Array:
        return jax.nn.sigmoid(segmenter.apply({"params": weights["segmenter"]}, pixels * 2.0 - 1.0)[..., 0])

    return Judges(recogniser=jax.jit(recognise), scene=jax.jit(classify), face_mask=jax.jit(segment))


def load_landmarks() -> Callable[[np.ndarray], tuple[Array, Array]]:
    """The shipped finder of landmarks: pixels (b, h, w, 3) in [0, 1] to points and sureness, as `read_landmarks` gives them."""
    weights, network = load_weights("landmarks")["landmarks"], Segmenter(networks.LANDMARKS)

    def find(pixels: Float[Array, "b h w 3"]) -> tuple[Array, Array]:
        return read_landmarks(network.apply({"params": weights}, pixels * 2.0 - 1.0), pixels.shape[1])

    return jax.jit(find)


def load_realism() -> JudgeFn:
    """The shipped features of realism: pixels (b, h, w, 3) in [0, 1] to vectors (b, d)."""
    weights, network = load_weights("realism")["realism"], ArcFace(networks.REALISM)
    return jax.jit(lambda pixels: network.apply({"params": weights}, pixels * 2.0 - 1.0, method="features"))


def load_attributes() -> JudgeFn:
    """The shipped judge of attributes: pixels (b, h, w, 3) in [0, 1] to identity parameters (b, p), in the order of `Face`.

    It is the network of `load_realism`, which was trained to tell them from renders and had no part in another training.
    """
    weights, network = load_weights("realism")["realism"], ArcFace(networks.REALISM)

    def judge(pixels: Float[Array, "b h w 3"]) -> Array:
        logits = network.apply({"params": weights}, pixels * 2.0 - 1.0, method="logits")
        return logits[:, : networks.NUM_IDENTITY_PARAMETERS]

    return jax.jit(judge)


def read_landmarks(logits: Float[Array, "b h w n"], size_px: int) -> tuple[Float[Array, "b n 2"], Float[Array, "b n"]]:
    """Points (x, y) in pixels of a picture, and how sure of them the maps are: their share at the point, in [0, 1].

    A point is the mean of the 5x5 positions around the highest one, weighted by their shares.
    """
    b, h, w, n = logits.shape
    shares = jax.nn.softmax(logits.reshape(b, h * w, n), axis=1)
    rows, columns = jnp.divmod(jnp.arange(h * w), w)
    best = shares.argmax(1)  # (b, n)
    near = jnp.maximum(jnp.abs(rows[:, None] - rows[best][:, None]), jnp.abs(columns[:, None] - columns[best][:, None]))
    shares = jnp.where(near <= 2, shares, 0.0)
    total = shares.sum(1)
    places = jnp.stack([columns, rows], -1) + 0.5
    points = jnp.einsum("bpn,pd->bnd", shares, places) / total[..., None]
    return points * (size_px / w), total


def held_out_people(split: str, count: int, encode_wplus: Callable, num_references: int = 1, start: int = 0) -> People:
    """People that no training has seen: W+ codes from aligned photographs, the gallery from a wild one.

    encode_wplus: pixels in [-1, 1] to W+ codes.
    num_references: photographs whose codes are averaged. start: the first person's number.

    Raises:
        ValueError: there aren't so many people, or nobody can mean so many photographs.
    """
    check_references(num_references)
    # Picture ids 0, 2, 3, ...: a picture id is light, pose and expression in every view, and that of the gallery is 1.
    references = [pictures(split, count, 1, "aligned", start=start)["pixels"]]
    for picture_id in range(2, num_references + 1):
        references.append(pictures(split, count, 1, "aligned", first_picture=picture_id, start=start)["pixels"])
    gallery = pictures(split, count, 1, "wild", first_picture=1, start=start)["pixels"]
    return People(
        references=references[0].astype(np.float32) / 255.0,
        gallery=gallery.astype(np.float32) / 255.0,
        wplus=mean_codes(np.stack([wplus_codes(encode_wplus, each) for each in references], axis=1)),
    )


def held_out_prompts(count: int, split: str = "test") -> Prompts:
    """Prompts of scenes that no training picture shows, the wordings in turn; "test" and "validation" share none."""
    scenes = renderer.held_out_scenes(count, split)
    texts = tuple(renderer.caption(scene, index) for index, scene in enumerate(scenes))
    return Prompts(
        texts=texts,
        text_ids=caption_ids(texts),
        attributes=scenes,
        attribute_names=tuple(renderer.SCENE_ATTRIBUTES),
    )
