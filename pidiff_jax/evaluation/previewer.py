"""A look at a run that is under way: is the identity being learned, and does the base keep drawing?"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pidiff_jax.evaluation import scores
from pidiff_jax.evaluation.identity import draw_noise
from pidiff_jax.evaluation.on_off import OnOff
from pidiff_jax.evaluation.report.pictures import SamplesGrid, draw_samples
from pidiff_jax.evaluation.subjects import Judges, PreviewPeople
from pidiff_jax.sampling.compiled import GenerateFn


class Previewer:
    """Draws the same people from the same noise again and again; with judges also scores them.

    Called with parameters, it returns {"samples": uint8 picture} and {"validation/identity_similarity": ..., ...}; without
    judges the scores are empty. What the base draws is drawn once.
    """

    def __init__(
        self,
        with_parameters: Callable[[Mapping[str, Any]], GenerateFn],
        people: PreviewPeople,
        judges: Judges | None = None,
        identity_scale: float = 1.0,
        num_shown: int = 6,
    ):
        self.with_parameters, self.people, self.judges = with_parameters, people, judges
        self.identity_scale, self.num_shown = identity_scale, num_shown
        numbers = np.arange(len(people.wplus))
        self.noise = draw_noise(0, np.stack([numbers, numbers, 0 * numbers], -1), people.noise_shape)
        self.base: np.ndarray | None = None

    def __call__(self, params: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        p, draw = self.people, self.with_parameters(params)
        on, attention = (np.asarray(x) for x in draw(p.wplus, p.text_ids, self.noise, self.identity_scale))
        if self.base is None:
            self.base = np.asarray(draw(p.wplus, p.text_ids, self.noise, 0.0)[0])
        pixels = OnOff(on, self.base)
        similarity: OnOff[np.ndarray] | None = None
        values: dict[str, float] = {}
        if self.judges is not None:
            similarity, values = self._score(self.judges, pixels, attention)
        n = self.num_shown
        grid = SamplesGrid(
            prompts=("each with a prompt of their own",),
            references=p.references[:n],
            with_identity=pixels.on[:n, None],
            without_identity=pixels.off[:n, None],
            attention=attention[:n, None],
            similarity_with=None if similarity is None else similarity.on[:n, None],
            similarity_without=None if similarity is None else similarity.off[:n, None],
        )
        return {"samples": draw_samples(grid)}, values

    def _score(
        self, judges: Judges, pixels: OnOff[np.ndarray], attention: np.ndarray
    ) -> tuple[OnOff[np.ndarray], dict[str, float]]:
        gallery, attributes = self.people.gallery, self.people.attributes
        if gallery is None or attributes is None:
            raise ValueError("expected people with a gallery and attributes for the judges, got none; add them")
        own = np.asarray(judges.recogniser(gallery))
        similarity = pixels.map(lambda x: scores.identity_similarity(np.asarray(judges.recogniser(x)), own))
        values = {
            "identity_similarity": similarity.on,
            "prompt_accuracy": scores.prompt_accuracy(np.asarray(judges.scene(pixels.on)), attributes),
            "attention_in_face": scores.attention_in_face(attention, np.asarray(judges.face_mask(pixels.on))),
        }
        return similarity, {f"validation/{name}": float(value.mean()) for name, value in values.items()}
