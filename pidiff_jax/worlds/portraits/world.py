"""The embedded world as a world: it renders its data, and its judges score."""

from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.schema import RecordSpec, validate_record
from data_pipeline.sources import Source
from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.evaluation.evaluator import PREVIEW_PEOPLE
from pidiff_jax.evaluation.subjects import DecodeFn, PreviewPeople, check_references
from pidiff_jax.locations import optional_path
from pidiff_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from pidiff_jax.sampling.components import BaseModel, Components
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.worlds.portraits import networks, renderer
from pidiff_jax.worlds.portraits.faces import PortraitFaces, render_codes
from pidiff_jax.worlds.portraits.judges import HeldOutPortraits
from pidiff_jax.worlds.portraits.sources import (
    cached_records,
    checked_numbers,
    encode_latents,
    identity_source,
    load_wplus_encoder,
    pictures,
    wplus_codes,
)
from pidiff_jax.worlds.portraits.weight_files import check_weights, load_weights
from pidiff_jax.worlds.world import KnownCodes

MIN_VALIDATION_PEOPLE = 64
OpenFns = Mapping[str, Callable[[], Source]]


class PortraitsWorld:
    """Reads `config.base` (path: folder of the base's weights; None or empty: the shipped ones) and `config.data`."""

    title = "of the embedded world"
    version = renderer.WORLD_VERSION
    wplus_size = (networks.NUM_WPLUS_LAYERS, networks.WPLUS_DIM)

    def __init__(self, config: Any):
        self._config = config

    @property
    def _base_path(self) -> Path | None:
        return optional_path(self._config.base.path, "config.base.path")

    def check(self) -> None:
        """See `World.check`."""
        check_weights("base", self._base_path)
        check_weights("vae", self._base_path)

    def base_model(self) -> BaseModel:
        """See `World.base_model`."""
        return BaseModel(networks.base_components(), self._load, networks.SCHEDULE)

    def _load(self) -> dict[str, Any]:
        return jax.tree.map(np.asarray, {**self._weights("base"), "vae": self._vae})

    def _weights(self, name: str) -> dict[str, Any]:
        folder = self._base_path
        return load_weights(name, folder, self._shapes()[name] if folder else None)

    @staticmethod
    def _shapes() -> dict[str, Any]:
        c = networks.base_components()
        base = {"unet": unet_shapes(c.unet), "text_encoder": text_encoder_shapes(c.conditioner.text_encoder)}
        return {"base": base, "vae": {"vae": vae_shapes(c.vae)}}

    @cached_property
    def _vae(self) -> dict[str, Any]:
        return self._weights("vae")["vae"]

    def sources(self, record: RecordSpec) -> Sources:
        """Renders people, or, with config.data.cache, reads them from records there."""
        data = self._config.data
        numbers = {
            "train": checked_numbers(data, "train"),
            "validation": (max(MIN_VALIDATION_PEOPLE, self._config.batch_size), 1),
        }
        rendered = {split: partial(self._render, split, *each) for split, each in numbers.items()}
        folder = optional_path(data.cache, "config.data.cache")

        @cache  # its hashes are taken once for both splits
        def openers() -> OpenFns:
            return rendered if not folder else self._cached(folder, numbers, rendered)

        def open_split(split: str) -> Source:
            source = openers()[split]()
            validate_record(source[0], expected=record)
            return source

        return Sources(partial(open_split, "train"), partial(open_split, "validation"))

    def _render(self, split: str, num_people: int, per_person: int) -> Source:
        encode = encode_latents(networks.base_components().vae, self._vae)
        return identity_source(encode, load_wplus_encoder(), split, num_people, per_person)

    def _cached(self, folder: Path, numbers: Any, rendered: OpenFns) -> OpenFns:
        fingerprints = {"vae": fingerprint(self._vae), "wplus": fingerprint(load_weights("wplus"))}
        return cached_records(folder, {"people": numbers, **fingerprints}, rendered)

    def check_references(self, count: int) -> None:
        """As many as wanted can be rendered; see `World.check_references`."""
        check_references(count)

    def preview_people(self, components: Components, decode: DecodeFn, num_references: int = 1) -> PreviewPeople:
        """Validation people, each with a validation prompt."""
        held_out = HeldOutPortraits("validation")
        people, prompts = held_out.people(PREVIEW_PEOPLE, num_references), held_out.prompts(PREVIEW_PEOPLE)
        return PreviewPeople(
            references=people.references,
            wplus=people.wplus,
            texts=prompts.texts,
            text_ids=prompts.text_ids,
            noise_shape=components.noise_shape,
            gallery=people.gallery,
            attributes=prompts.attributes,
        )

    def held_out(self, split: str) -> HeldOutPortraits:
        """See `World.held_out`."""
        return HeldOutPortraits(split)

    def faces(self, encoder: Path | None = None) -> PortraitFaces:
        """See `World.faces`."""
        if encoder is not None:
            raise ValueError(
                f"expected no W+ encoder for the embedded world, which has its own, got {encoder}; leave it out"
            )
        return PortraitFaces()

    def known_codes(self, count: int) -> KnownCodes:
        """Of rendered people: what their faces were drawn from, and their expression; see `World.known_codes`."""
        people, numbers = renderer.person_ids("train", count), np.zeros(count, np.int32)
        codes = wplus_codes(load_wplus_encoder(), pictures("train", count, 1, "aligned")["pixels"])
        identity = renderer.identities(people)
        pose = renderer.poses(people, numbers, "aligned")
        expression = {name: getattr(pose, name) for name in ("smile", "mouth_open", "brow_raise", "gaze", "yaw")}
        labels = np.concatenate([identity, np.stack(list(expression.values()), 1)], axis=1)
        return KnownCodes(codes, labels, (*renderer.Face._fields, *expression))

    def render_codes(self, wplus: np.ndarray) -> np.ndarray:
        """By the shipped synthesis network; see `World.render_codes`."""
        return render_codes(wplus)

    def tasks(self) -> Mapping[str, Callable[[Any], Experiment]]:
        """The tasks that make the shipped weights."""
        from pidiff_jax.worlds.portraits.tasks import BUILDERS

        return BUILDERS
