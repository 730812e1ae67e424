"""The protocol of a world: what a training run needs of it, and what is needed to look at what was trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.schema import RecordSpec
from pidiff_jax.evaluation.subjects import DecodeFn, HeldOut, PreviewPeople
from pidiff_jax.sampling.components import BaseModel, Components
from pidiff_jax.train.experiment import Experiment, Sources


class KnownCodes(NamedTuple):
    """W+ codes of people that trainings see, and numbers that are known of them.

    labels: one column for each of `names`; none where nothing is known.
    """

    wplus: Float[np.ndarray, "n l d"]
    labels: Float[np.ndarray, "n a"]
    names: tuple[str, ...]


@runtime_checkable
class Faces(Protocol):
    """From a user's photographs to W+ codes."""

    def encode(
        self, pixels: UInt8[np.ndarray, "h w 3"], landmarks: Float[np.ndarray, "n 2"] | None = None
    ) -> Float[np.ndarray, "l d"]:
        """The code of the one face in a picture.

        landmarks: 5 or 68 points (see `data_pipeline.prepare.align`); None: they are found, where something here finds them.

        Raises:
            ValueError: no face, or several; or nothing here finds them.
        """

    def mask(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """1 in the head of the one person in a picture, 0 elsewhere.

        Raises:
            ValueError: no face, or several; or nothing here finds them.
        """


@runtime_checkable
class World(Protocol):
    """A base model, data, people, and judges where there are any."""

    title: str
    """What follows "a run", for people: "of the embedded world", "on photographs"."""
    version: int
    """Raised when pictures, codes or weights change, so that runs and configs of before no longer mean the same."""
    wplus_size: tuple[int, int]
    """Layers and width of the W+ codes."""

    def check(self) -> None:
        """Looks whether everything is there that `base_model` and `sources` will read; takes no time.

        Raises:
            FileNotFoundError: says all that is missing, and where it was looked for.
        """

    def base_model(self) -> BaseModel:
        """The text-to-image model; reads its configuration, not its weights."""

    def sources(self, record: RecordSpec) -> Sources:
        """The training and validation data of an identity adapter, as records of these sizes.

        record: what the model needs; only the latents' height and width may be others.
        """

    def check_references(self, count: int) -> None:
        """Looks whether there are so many photographs of everybody who is looked at.

        Raises:
            ValueError: there are fewer; names a person, and how many there are.
        """

    def preview_people(self, components: Components, decode: DecodeFn, num_references: int = 1) -> PreviewPeople:
        """Held-out people to draw while training.

        decode: makes pictures of latents.
        num_references: photographs whose W+ codes are averaged for each of them.
        """

    def held_out(self, split: str) -> HeldOut | None:
        """People and prompts of the "validation" or the "test" split with their judges; None where nobody judges."""

    def faces(self, encoder: Path | None = None) -> Faces:
        """What encodes photographs.

        encoder: file of the W+ encoder, for worlds that have none of their own.

        Raises:
            FileNotFoundError, ValueError: there is no encoder; says what to pass.
        """

    def known_codes(self, count: int) -> KnownCodes:
        """The first codes of the training data, as many as there are up to `count`.

        Raises:
            ValueError, FileNotFoundError: there are none.
        """

    def render_codes(self, wplus: Float[np.ndarray, "b l d"]) -> Float[np.ndarray, "b h w 3"] | None:
        """Pictures in [0, 1] of W+ codes by the generator whose space they are in; None where it isn't at hand."""

    def tasks(self) -> Mapping[str, Callable[[Any], Experiment]]:
        """Further tasks, which make this world's own weights: name -> builder from a config."""
