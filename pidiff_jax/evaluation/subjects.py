"""Who is drawn and who judges: held-out people, held-out prompts, and networks that had no part in the training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

JudgeFn = Callable[[np.ndarray], Array]
DecodeFn = Callable[[np.ndarray], Array]  # raw latents (b, h, w, c) -> pixels (b, H, W, 3) in [0, 1]
MAX_REFERENCES = 100  # a slip of the keys would render for hours


def check_references(count: int) -> None:
    """Raises ValueError for a number of photographs of a person that nobody can mean."""
    if not 1 <= count <= MAX_REFERENCES:
        raise ValueError(f"expected 1 to {MAX_REFERENCES} photographs of each person, got {count}; correct it")


def mean_codes(codes: Float[np.ndarray, "n r l d"]) -> Float[np.ndarray, "n l d"]:
    """One W+ code a person, the mean of those of r photographs; of one photograph, its own, bit for bit."""
    return codes.mean(1)


@dataclass(frozen=True)
class People:
    """Held-out people, pixels in [0, 1].

    references: a photograph that the W+ codes come from, also shown in the samples; the first one, where there are several.
    gallery: other photographs of the same people, which pictures are compared with.
    wplus: identity codes, each the mean of those of a person's photographs.
    """

    references: Float[np.ndarray, "n h w 3"]
    gallery: Float[np.ndarray, "n _h _w 3"]
    wplus: Float[np.ndarray, "n l d"]


@dataclass(frozen=True)
class Prompts:
    """Held-out prompts; `attributes` are what the scene classifier should see, by attribute name."""

    texts: tuple[str, ...]
    text_ids: Int[np.ndarray, "p m"]
    attributes: Int[np.ndarray, "p a"]
    attribute_names: tuple[str, ...]


@dataclass(frozen=True)
class Judges:
    """Networks that score pixels (b, h, w, 3) in [0, 1]; none may have had a part in the training.

    recogniser: -> embeddings (b, d) of the faces.
    scene: -> class indices (b, a), in the order of `Prompts.attribute_names`.
    face_mask: -> (b, h, w) in [0, 1], 1 in the face, at any resolution.
    """

    recogniser: JudgeFn
    scene: JudgeFn
    face_mask: JudgeFn


@runtime_checkable
class HeldOut(Protocol):
    """People and prompts of a split that no training sees, and their judges."""

    def judges(self) -> Judges:
        """The networks that score."""

    def check_people(self, count: int) -> None:
        """Raises ValueError if there aren't so many people, or fewer than 1 are asked for."""

    def people(self, count: int, num_references: int = 1, start: int = 0) -> People:
        """The split's people from its `start`-th on; making their pictures may take a while.

        num_references: photographs whose W+ codes are averaged for each of them; none is the gallery's.
        """

    def prompts(self, count: int) -> Prompts:
        """The split's first prompts.

        Raises:
            ValueError: fewer than 1, or more than there are.
        """


@dataclass(frozen=True)
class PreviewPeople:
    """Held-out people, each with one prompt.

    references: pictures in [0, 1]. wplus: their identity codes. noise_shape: (h, w, c) of the noise that their pictures
        begin with. gallery: other photographs of them, for the judges.
    """

    references: Float[np.ndarray, "n h w 3"]
    wplus: Float[np.ndarray, "n l d"]
    texts: tuple[str, ...]
    text_ids: Int[np.ndarray, "n m"]
    noise_shape: tuple[int, int, int]
    gallery: Float[np.ndarray, "n _h _w 3"] | None = None
    attributes: Int[np.ndarray, "n a"] | None = None
