"""Photographs as a world: the base is a Stable Diffusion folder or file, the data are records; nobody judges yet."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.records import open_records
from data_pipeline.schema import RecordSpec, validate_record
from data_pipeline.sources import RecordSource, Source
from pidiff_jax.convert.base_model import check_base_model, open_base_model
from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.convert.diffusers_folder import noise_schedule
from pidiff_jax.convert.lora import parse_lora
from pidiff_jax.convert.stable_diffusion import StableDiffusion
from pidiff_jax.evaluation.subjects import DecodeFn, PreviewPeople, check_references, mean_codes
from pidiff_jax.locations import optional_path
from pidiff_jax.models.clip import ClipText
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.unet import UNet
from pidiff_jax.models.vae import AutoencoderKL
from pidiff_jax.ranges import about
from pidiff_jax.sampling.components import BaseModel, Components
from pidiff_jax.train.experiment import Experiment, Sources
from pidiff_jax.worlds.photographs.faces import PhotographFaces
from pidiff_jax.worlds.world import KnownCodes


class PhotographsWorld:
    """Reads `config.base` (path, variant, tokenizer, prediction_type, loras), `config.data` (path, wplus_layers, wplus_dim) and
    `config.evaluation`.
    """

    title = "on photographs"
    version = 1

    def __init__(self, config: Any):
        self.wplus_size = (config.data.wplus_layers, config.data.wplus_dim)
        self._base, self._data, self._evaluation = config.base, config.data, config.evaluation
        self._base_path = optional_path(config.base.path, "config.base.path")
        # Configs of runs from before single files could be read have none of these keys.
        self._tokenizer = optional_path(config.base.get("tokenizer"), "config.base.tokenizer")
        self._prediction_type = config.base.get("prediction_type")
        self._loras = [parse_lora(text, "config.base.loras") for text in config.base.get("loras", ())]
        self._data_path = optional_path(config.data.path, "config.data.path")

    def check(self) -> None:
        """Both complaints at once, before anything is read; see `World.check`."""
        missing = []
        path = self._base_path
        if path is None or not (path.is_file() or (path / "model_index.json").is_file()):
            missing.append(
                f"base model: expected a Stable Diffusion folder in diffusers' format (with model_index.json), or a file, at "
                f"config.base.path={self._base.path!r}, found none; download or convert one and pass "
                "--config.base.path=FOLDER (launch.evaluate: --base_path)"
            )
        if self._data_path is None or not self._data_path.is_dir():
            missing.append(
                f"data: expected a folder of records at config.data.path={self._data.path!r}, found none; make one as "
                "docs/data.md shows and pass --config.data.path=FOLDER (launch.evaluate: --data_path)"
            )
        if missing:
            raise FileNotFoundError("\n".join(missing))
        assert path is not None
        check_base_model(path, self._base.variant)

    @cached_property
    def _model(self) -> StableDiffusion:
        assert self._base_path is not None  # `check` came first
        with about("config.base"):
            return open_base_model(
                self._base_path,
                variant=self._base.variant,
                tokenizer=self._tokenizer,
                prediction_type=self._prediction_type,
                loras=self._loras,
            )

    def base_model(self) -> BaseModel:
        """See `World.base_model`."""
        return BaseModel(folder_components(self._model), self._model.load, self._model.schedule)

    def sources(self, record: RecordSpec) -> Sources:
        """Opens the records, and checks that the first of each split fits the model."""
        return Sources(partial(self._open, "train", record), partial(self._open, "validation", record))

    def _open(self, split: str, record: RecordSpec) -> Source:
        source = self._records(split)
        validate_record(source[0], expected=record.without_latent_size())
        return source

    def _records(self, split: str) -> RecordSource:
        assert self._data_path is not None  # `check` came first
        return open_records(self._data_path, split)

    def check_references(self, count: int) -> None:
        """Whether the validation records have so many of each person that is drawn; see `World.check_references`."""
        check_references(count)
        first_records(self._records("validation"), self._evaluation.num_preview_people, count)

    def preview_people(self, components: Components, decode: DecodeFn, num_references: int = 1) -> PreviewPeople:
        """The first people of the validation records; their pictures come from the latents."""
        source = self._records("validation")
        records = first_records(source, self._evaluation.num_preview_people, num_references)
        batch = {name: np.stack([own[0][name] for own in records]) for name in source[0]}
        return PreviewPeople(
            references=np.asarray(decode(batch["latent_mean"])),
            wplus=mean_codes(np.stack([[record["wplus"] for record in own] for own in records])),
            texts=tuple(components.tokenizer.batch_decode(batch["text_ids"], skip_special_tokens=True)),
            text_ids=batch["text_ids"],
            noise_shape=batch["latent_mean"].shape[1:],
        )

    def held_out(self, split: str) -> None:
        """Nobody judges photographs yet."""

    def faces(self, encoder: Path | None = None) -> PhotographFaces:
        """See `World.faces`."""
        if encoder is None:
            raise ValueError(
                "expected the file of a W+ encoder for photographs, got none; pass encoder4editing's checkpoint as "
                "wplus_encoder (--wplus_encoder)"
            )
        return PhotographFaces(encoder, *self.wplus_size)

    def known_codes(self, count: int) -> KnownCodes:
        """Of the training records, without labels; see `World.known_codes`."""
        source = self._records("train")
        codes = np.stack([source[index]["wplus"] for index in range(min(count, len(source)))])
        return KnownCodes(codes, np.zeros((len(codes), 0)), ())

    def render_codes(self, wplus: np.ndarray) -> None:
        """No StyleGAN2 is at hand; see `World.render_codes`."""

    def tasks(self) -> Mapping[str, Callable[[Any], Experiment]]:
        """None: its weights come from others."""
        return {}


def first_records(source: Source, num_people: int, num_records: int) -> list[list[dict[str, np.ndarray]]]:
    """The first people of validation records, as many as there are up to `num_people`: the first records of each.

    Raises:
        ValueError: a person has fewer than `num_records`.
    """
    found: dict[int, list[dict[str, np.ndarray]]] = {}
    for index in range(len(source)):
        record = source[index]
        person = int(record["person_id"])
        if len(found) < num_people:
            found.setdefault(person, [])
        if person in found and len(found[person]) < num_records:
            found[person].append(record)
        if len(found) == num_people and all(len(own) == num_records for own in found.values()):
            break
    for person, own in found.items():
        if len(own) < num_records:
            raise ValueError(
                f"expected {num_records} photographs of each person that is drawn, got {len(own)} of person {person} in the "
                "validation records; ask for fewer, or prepare more photographs of them"
            )
    return list(found.values())


def folder_components(folder: StableDiffusion) -> Components:
    """The modules and constants of a Stable Diffusion model, without identity."""
    return Components(
        unet=UNet(folder.unet_spec),
        conditioner=ClipConditioner(ClipText(folder.text_spec)),
        vae=AutoencoderKL(folder.vae_spec),
        mapper=None,
        schedule=noise_schedule(folder.schedule),
        prediction_type=folder.schedule.prediction_type,
        null_text_ids=tuple(int(i) for i in tokenize(folder.tokenizer, [""])[0]),
        latent_size=folder.latent_size,
        tokenizer=folder.tokenizer,
        timestep_spacing=folder.schedule.timestep_spacing,
        steps_offset=folder.schedule.steps_offset,
        set_alpha_to_one=folder.schedule.set_alpha_to_one,
    )
