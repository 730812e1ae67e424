"""Training arrays of the embedded world: rendered pictures, latents, W+ codes and token ids."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.records import Record, open_records, write_records
from data_pipeline.sources import ArraySource, Source
from pidiff_jax.arrays import byte_pixels, in_batches, signed_pixels
from pidiff_jax.locations import make_folder
from pidiff_jax.models.e4e import E4eEncoder, encode_wplus
from pidiff_jax.models.vae import AutoencoderKL
from pidiff_jax.ranges import about, check_count
from pidiff_jax.worlds.portraits import networks, renderer
from pidiff_jax.worlds.portraits.tokenizer import caption_ids
from pidiff_jax.worlds.portraits.weight_files import load_weights

_BATCH_SIZE = 64
EncodeFn = Callable[..., Any]


def checked_numbers(data: Any, split: str) -> tuple[int, int]:
    """People of a split and pictures of each, as a config's `data` asks for.

    Raises:
        ValueError: there are not so many, or none; names the key.
    """
    with about("config.data.num_people"):
        renderer.person_ids(split, data.num_people)
    check_count("config.data.pictures_per_person", data.pictures_per_person)
    return data.num_people, data.pictures_per_person


def pictures(
    split: str, num_people: int, per_person: int, view: renderer.View, first_picture: int = 0, start: int = 0
) -> dict:
    """Renders pictures, person-major: pixels uint8 (n, h, w, 3), head_mask uint8 (n, h, w), landmarks (n, 5, 2), scene (n, 3),
    person_id (n,).

    Raises:
        ValueError: nobody, or no picture, is asked for.
    """
    if per_person < 1:
        raise ValueError(f"expected at least 1 picture per person, got {per_person}; ask for more")
    people = np.repeat(renderer.person_ids(split, num_people, start), per_person)
    numbers = np.tile(np.arange(per_person, dtype=np.int32) + first_picture, num_people)
    picture = renderer.draw(people, numbers, view)
    return {
        "pixels": byte_pixels(np.asarray(picture.pixels)),
        "head_mask": byte_pixels(np.asarray(picture.head_mask)),
        "landmarks": picture.landmarks,
        "scene": picture.scene,
        "person_id": people,
    }


def picture_source(
    split: str, num_people: int, per_person: int, views: tuple[renderer.View, ...], start: int = 0
) -> ArraySource:
    """Pictures of several views as one source, with their scenes."""
    parts = [pictures(split, num_people, per_person, view, start=start) for view in views]
    return ArraySource({name: np.concatenate([p[name] for p in parts]) for name in ("pixels", "scene", "person_id")})


def mask_source(split: str, num_people: int, per_person: int) -> ArraySource:
    """Wild pictures with their head masks."""
    wild = pictures(split, num_people, per_person, "wild")
    return ArraySource({name: wild[name] for name in ("pixels", "head_mask")})


def landmark_source(split: str, num_people: int, per_person: int) -> ArraySource:
    """Wild pictures with the landmarks of their faces."""
    wild = pictures(split, num_people, per_person, "wild")
    return ArraySource({name: wild[name] for name in ("pixels", "landmarks")})


def rendering_source(split: str, num_people: int, per_person: int) -> ArraySource:
    """Wild pictures with what they were rendered from: identity parameters and scenes."""
    wild = pictures(split, num_people, per_person, "wild")
    identity = renderer.identities(wild["person_id"])
    return ArraySource({"pixels": wild["pixels"], "identity": identity, "scene": wild["scene"]})


def pair_source(split: str, num_people: int, pairs_per_person: int) -> ArraySource:
    """Pairs of pictures of one person: wild with wild, and wild with aligned."""
    wild = pictures(split, num_people, 2 * pairs_per_person, "wild")["pixels"]
    aligned = pictures(split, num_people, pairs_per_person, "aligned")["pixels"]
    wild = wild.reshape(num_people, 2 * pairs_per_person, *wild.shape[1:])
    aligned = aligned.reshape(num_people, pairs_per_person, *aligned.shape[1:])
    others = wild[:, pairs_per_person:].copy()
    others[:, ::2] = aligned[:, ::2]
    join = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    return ArraySource({"pixels": join(wild[:, :pairs_per_person]), "other_pixels": join(others)})


def encode_latents(vae: AutoencoderKL, params: Mapping[str, Any]) -> EncodeFn:
    """The VAE's encoder as a function of pixels in [-1, 1]."""
    return lambda pixels: vae.apply({"params": params}, pixels, method="encode")


def load_wplus_encoder() -> EncodeFn:
    """The shipped W+ encoder, as a function of aligned faces in [-1, 1]."""
    weights = load_weights("wplus")
    encoder = E4eEncoder(networks.ENCODER)
    return lambda pixels: encode_wplus(encoder, weights["encoder"], weights["latent_avg"], pixels)


def _encode(encode: EncodeFn, pixels: np.ndarray) -> Any:
    """What the function makes of uint8 pixels."""
    return in_batches(jax.jit(lambda x: encode(signed_pixels(x))), pixels, batch_size=_BATCH_SIZE, doing="encoding")


def latent_arrays(encode: EncodeFn, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """VAE mean and log-variance of uint8 pixels; `encode` takes pixels in [-1, 1]."""
    mean, log_variance = _encode(encode, pixels)
    return {"latent_mean": mean, "latent_log_variance": log_variance}


def scene_caption_ids(scenes: np.ndarray) -> np.ndarray:
    """Token ids (n, m) of the scenes' captions, the wordings used in turn."""
    return caption_ids([renderer.caption(scene, index) for index, scene in enumerate(scenes)])


def caption_source(encode: EncodeFn, split: str, num_people: int, per_person: int) -> ArraySource:
    """Latents and captions of wild pictures, for the base model."""
    wild = pictures(split, num_people, per_person, "wild")
    return ArraySource({**latent_arrays(encode, wild["pixels"]), "text_ids": scene_caption_ids(wild["scene"])})


def identity_source(
    encode: EncodeFn, encode_wplus: EncodeFn, split: str, num_people: int, per_person: int
) -> ArraySource:
    """The batch schema of data_pipeline/schema.py: each wild picture with the W+ code of another, aligned photograph."""
    wild = pictures(split, num_people, per_person, "wild")
    aligned = pictures(split, num_people, per_person, "aligned", first_picture=per_person)
    latents = latent_arrays(encode, wild["pixels"])
    return ArraySource(
        {
            **latents,
            "wplus": wplus_codes(encode_wplus, aligned["pixels"]),
            "text_ids": scene_caption_ids(wild["scene"]),
            "face_mask": downsample_mask(wild["head_mask"], latents["latent_mean"].shape[1]),
            "person_id": wild["person_id"],
        }
    )


def cached_records(
    folder: Path | str, made_from: Mapping[str, Any], sources: Mapping[str, Callable[[], Source]]
) -> Mapping[str, Callable[[], Source]]:
    """The same sources, rendered once: whoever opens one first writes all as records below `folder`; then they are read.

    folder: of caches; each has a subfolder of its own, complete or not there at all.
    made_from: all that the records depend on beside the renderer, as JSON takes it: numbers of people and pictures, content
        hashes of encoders. A hash of it names the subfolder.
    sources: split -> what renders its records.

    Raises (when a source is opened):
        ValueError: `folder` can't be made.
    """
    facts = {**made_from, "world_seed": renderer.WORLD_SEED, "world_version": renderer.WORLD_VERSION}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    directory = Path(folder) / f"portraits-{name}"

    def open_split(split: str) -> Source:
        if not directory.is_dir():
            make_folder(Path(folder), f"a folder for cached records at {folder}")
            try:
                write_records(directory, {each: _rendered(make) for each, make in sources.items()}, facts)
            except OSError:
                if not directory.is_dir():  # else another process was faster
                    raise
        return open_records(directory, split)

    return {split: functools.partial(open_split, split) for split in sources}


def _rendered(make: Callable[[], Source]) -> Iterator[Record]:
    source = make()
    for index in range(len(source)):
        yield source[index]


def wplus_codes(encode_wplus: EncodeFn, pixels: np.ndarray) -> np.ndarray:
    """W+ codes of aligned uint8 faces; `encode_wplus` takes pixels in [-1, 1]."""
    return _encode(encode_wplus, pixels)


def downsample_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Area average of a uint8 mask (n, h, w) to (n, size, size) float32 in [0, 1]."""
    n, h, w = mask.shape
    return mask.reshape(n, size, h // size, size, w // size).mean((2, 4), dtype=np.float32) / 255.0
