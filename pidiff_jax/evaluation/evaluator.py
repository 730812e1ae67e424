"""What is drawn and scored of an identity adapter: previews on the way, and everything at its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from jax.sharding import Mesh

from pidiff_jax.evaluation.identity import Evaluation, evaluate_identity
from pidiff_jax.evaluation.previewer import Previewer
from pidiff_jax.evaluation.protocol import Protocol
from pidiff_jax.evaluation.subjects import DecodeFn, HeldOut, PreviewPeople, Prompts
from pidiff_jax.sampling.compiled import CompiledSampler, GenerateFn
from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling

PREVIEW_PEOPLE = 16  # also the batch size of the scoring, so that one compiled sampler serves both


@dataclass(frozen=True)
class Scoring:
    """What is scored, where somebody judges.

    split: whose people and prompts they are, "test" or "validation".
    """

    split: str
    held_out: HeldOut
    num_people: int
    prompts: Prompts


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is looked at.

    scoring: None where nobody judges; then there are pictures only.
    identity_start: share of the steps before the identity is there.
    num_references: photographs of a person whose W+ codes are averaged.
    """

    sampling: Sampling
    protocol: Protocol
    scoring: Scoring | None = None
    identity_start: float = 0.0
    num_references: int = 1

    def facts(self) -> dict[str, Any]:
        """What the scores depend on beside the parameters, for metrics.json and the report; empty without scores."""
        if self.scoring is None:
            return {}
        return {
            "split": self.scoring.split,
            "num_people": self.scoring.num_people,
            "num_prompts": len(self.scoring.prompts.texts),
            "num_references": self.num_references,
            "num_diversity_people": min(self.protocol.num_diversity_people, self.scoring.num_people),
            "num_seeds": self.protocol.num_seeds,
            "identity_scale": self.protocol.identity_scale,
            "identity_start": self.identity_start,
            "guidance_scale": float(self.sampling.guidance_scale),
            "sampling_steps": self.sampling.num_steps,
            "seed": self.protocol.seed,
        }


class Evaluator:
    """Draws and scores one model with changing parameters; the samplers are compiled once, whoever uses them first.

    Args:
        components: the model.
        extra_params: those of its parameters that are not trained with it, {"vae"}, on the mesh.
        mesh: that the parameters lie on.
        settings: what is drawn, and how.
        preview_people: makes the people of the previews, given a function from raw latents to pixels in [0, 1] and the
            number of photographs that each code is averaged from.
    """

    def __init__(
        self,
        components: Components,
        extra_params: Mapping[str, Any],
        mesh: Mesh,
        settings: EvaluationSettings,
        preview_people: Callable[[DecodeFn, int], PreviewPeople],
    ):
        self.components, self.settings = components, settings
        self._preview_people = preview_people
        self._sampler = CompiledSampler(components, mesh)
        self._extra = extra_params

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, with those that drawing needs beside them."""
        return {**params, **self._extra}

    def with_parameters(self, params: Mapping[str, Any]) -> GenerateFn:
        """The function that draws with these parameters."""
        settings = self.settings
        return self._sampler.with_parameters(self.complete(params), settings.sampling, settings.identity_start)

    @cached_property
    def previewer(self) -> Previewer:
        """Draws held-out people and, where somebody judges, scores them; made when it is first asked for."""
        scoring = self.settings.scoring
        judges = None if scoring is None else scoring.held_out.judges()
        identity_scale = self.settings.protocol.identity_scale
        people = self._preview_people(partial(self._sampler.decode, self._extra["vae"]), self.settings.num_references)
        return Previewer(self.with_parameters, people, judges, identity_scale)

    def evaluate(self, params: Mapping[str, Any]) -> Evaluation | None:
        """All scores, and pictures of the first people; None where nobody judges."""
        scoring = self.settings.scoring
        if scoring is None:
            return None
        return evaluate_identity(
            self.with_parameters(params),
            scoring.held_out.judges(),
            scoring.held_out.people(scoring.num_people, self.settings.num_references),
            scoring.prompts,
            self.components.noise_shape,
            self.settings.protocol,
        )
