"""A look at a training that is under way: is the identity being learned, and does the base keep drawing?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pidiff_jax.evaluation import scores
from pidiff_jax.evaluation.identity import GenerateFn, Judges, draw_noise
from pidiff_jax.evaluation.pictures import SamplesGrid, draw_samples


@dataclass(frozen=True)
class Sitters:
    """Held-out people, each with one prompt.

    references: pictures in [0, 1]. wplus: their identity codes. gallery: other photographs of them, for the judges.
    """

    references: Float[np.ndarray, "n h w 3"]
    wplus: Float[np.ndarray, "n l d"]
    texts: tuple[str, ...]
    text_ids: Int[np.ndarray, "n m"]
    gallery: Float[np.ndarray, "n _h _w 3"] | None = None
    attributes: Int[np.ndarray, "n a"] | None = None


class Preview:
    """Draws the same people from the same noise again and again; with judges also scores them.

    Called with parameters, it returns {"samples": uint8 picture} and {"validation/identity_similarity": ..., ...}; without
    judges the scores are empty. What the base draws is drawn once.
    """

    def __init__(
        self,
        with_parameters: Callable[[Mapping[str, Any]], GenerateFn],
        sitters: Sitters,
        noise_shape: tuple[int, int, int],
        judges: Judges | None = None,
        identity_scale: float = 1.0,
        num_shown: int = 6,
    ):
        self.with_parameters, self.sitters, self.judges = with_parameters, sitters, judges
        self.identity_scale, self.num_shown = identity_scale, num_shown
        people = np.arange(len(sitters.wplus))
        self.noise = draw_noise(0, np.stack([people, people, 0 * people], -1), noise_shape)
        self.base: np.ndarray | None = None

    def __call__(self, params: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        s, draw = self.sitters, self.with_parameters(params)
        on, attention = (np.asarray(x) for x in draw(s.wplus, s.text_ids, self.noise, self.identity_scale))
        if self.base is None:
            self.base = np.asarray(draw(s.wplus, s.text_ids, self.noise, 0.0)[0])
        similarity, values = None, {}
        if self.judges is not None:
            similarity, values = self._score(on, attention)
        n = self.num_shown
        grid = SamplesGrid(
            prompts=("each with a prompt of their own",),
            references=s.references[:n],
            with_identity=on[:n, None],
            without_identity=self.base[:n, None],
            attention=attention[:n, None],
            similarity_with=None if similarity is None else similarity["on"][:n, None],
            similarity_without=None if similarity is None else similarity["off"][:n, None],
        )
        return {"samples": draw_samples(grid)}, values

    def _score(self, on: np.ndarray, attention: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        own = np.asarray(self.judges.recogniser(self.sitters.gallery))
        similarity = {
            name: scores.identity_similarity(np.asarray(self.judges.recogniser(pixels)), own)
            for name, pixels in (("on", on), ("off", self.base))
        }
        seen = np.asarray(self.judges.scene(on))
        inside = scores.attention_in_face(attention, np.asarray(self.judges.face_mask(on)))
        values = {
            "identity_similarity": similarity["on"],
            "prompt_accuracy": scores.prompt_accuracy(seen, self.sitters.attributes),
            "attention_in_face": inside,
        }
        return similarity, {f"validation/{name}": float(value.mean()) for name, value in values.items()}
