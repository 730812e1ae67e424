"""What a format has to say: whether it can hold a run, how it is written, and how it is read and drawn from again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from pidiff_jax.convert.diffusers_config import ScheduleSettings
from pidiff_jax.export.model_spec import describe
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.runs.saved_run import SavedRun
from pidiff_jax.sampling.components import Components


@dataclass(frozen=True)
class Scenes:
    """What is drawn on both sides: n pictures, each of a person in a scene. Person and text change together with the noise.

    noise: NHWC. identity_start: share of the steps before the identity is there.
    """

    wplus: Float[np.ndarray, "n l d"]
    texts: Sequence[str]
    noise: Float[np.ndarray, "n h w c"]
    identity_scale: float
    identity_start: float
    num_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Export:
    """A run on its way out.

    people: makes the W+ codes of the people that are sent along, by name.
    dtype: of the weights that are written.
    picture: of the run, for thumbnails; None where none was drawn.
    """

    run: SavedRun
    config: Mapping[str, Any]
    schedule: ScheduleSettings
    people: Callable[[], Mapping[str, Float[np.ndarray, "l d"]]]
    dtype: np.dtype
    variant: str | None = None
    licence: str | None = None
    picture: Float[np.ndarray, "h w 3"] | None = None

    @property
    def components(self) -> Components:
        """The model of the run."""
        return self.run.components

    def metadata(self, kind: str, implementation: str, description: str) -> dict[str, str]:
        """ModelSpec's fields; see `describe`."""
        source = self.run.folder.resolve()  # "." has no name
        return describe(
            self.components,
            kind=kind,
            implementation=implementation,
            title=f"PIDiff {source.stem if source.is_file() else source.name}",
            description=f"{description} Trained for {self.run.facts['num_steps']} steps with pidiff_jax.",
            licence=self.licence,
            picture=self.picture,
        )

    def cast(self, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Tensors by name in the dtype that is written.

        Raises:
            ValueError: numbers that are too large for it.
        """
        out = {name: np.asarray(tensor).astype(self.dtype) for name, tensor in tensors.items()}
        if wrong := sorted(name for name, tensor in out.items() if not np.isfinite(tensor.astype(np.float32)).all()):
            raise ValueError(
                f"expected finite numbers in {self.dtype}, got others in {wrong[0]!r}; export with --dtype=bfloat16 or "
                "float32, and look whether the run diverged"
            )
        return out


@runtime_checkable
class Format(Protocol):
    """A way out.

    name: the word of --format.
    draws_identity: whether people can be drawn from the files; else the base draws.
    needs_base: whether they are drawn from beside a base model.
    has_variants: whether weight files are named by a variant.
    has_people: whether people are sent along.
    usage: what a reader does with the files in {folder}.
    """

    name: str
    draws_identity: bool
    needs_base: bool
    has_variants: bool
    has_people: bool
    usage: str

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Looks whether the format can hold a run, from what its config says.

        Raises:
            ValueError: it can't; names the format that can.
        """

    def write(self, export: Export, folder: Path) -> None:
        """Writes the files into an empty folder."""

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Reads the files again: those parameters of the run that they hold, by our paths, in any nesting."""

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray | None:
        """Draws from the files in PyTorch: pixels (n, h, w, 3) in [0, 1]; None where PyTorch has no reader for them.

        base: folder of the base model, as diffusers opens it.
        """


def trained_base(trained: frozenset[str]) -> list[str]:
    """What was trained of the base model itself."""
    return sorted(path for path in trained if not of_adapter(path))


def of_adapter(path: str) -> bool:
    """Whether a parameter is the mapper's or the identity branch's, and not of the base model."""
    return path.startswith("mapper/") or "_id/" in path


def check_adapter_alone(name: str, trained: frozenset[str]) -> None:
    """Raises ValueError where the run has trained the base too, which a file of an adapter doesn't hold."""
    if base := trained_base(trained):
        raise ValueError(
            f"expected a run that trained its adapter alone for --format={name}, got one that trained {base[0]} too; "
            "--format=diffusers_identity or safetensors can hold it"
        )


def parts(params: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The leaves of the given paths, as a tree."""
    flat = flatten(params)
    return unflatten({name: flat[name] for name in sorted(names)})
