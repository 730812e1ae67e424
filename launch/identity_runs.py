"""What the commands draw and score of an identity training: previews on the way, results at the end."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.portraits import person_ids
from pidiff_jax import embedded_faces
from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.diffusion.samplers import ddim_timesteps
from pidiff_jax.evaluation import portraits
from pidiff_jax.evaluation.drawing import Artist
from pidiff_jax.evaluation.identity import Evaluation, Prompts, Protocol, evaluate_identity
from pidiff_jax.evaluation.metrics_file import write_metrics
from pidiff_jax.evaluation.pictures import draw_samples, png_bytes
from pidiff_jax.evaluation.preview import Preview, Sitters
from pidiff_jax.evaluation.report import scores_text, write_report
from pidiff_jax.pipeline import Components, Sampling
from pidiff_jax.sharding.rules import place, replicated
from pidiff_jax.train.build_identity import EMBEDDED
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.train.run import Result

RESULTS = ("samples.png", "report.html", "metrics.json")
PREVIEW_PEOPLE = 16  # also the batch size of the scoring, so that one compiled sampler serves both


class IdentityExaminer:
    """Draws and scores one identity training; the samplers are compiled once, whoever uses them first.

    folder: where the results go.
    split: whose people and prompts are scored at the end, "test" or "validation"; embedded world only.

    Raises:
        ValueError: the config's sampling or evaluation can't be done; names the key. Made before a training, the examiner
            thereby keeps it from failing at its end.
    """

    def __init__(
        self, config: ConfigDict, folder: Path, experiment: Experiment, mesh: Mesh, split: portraits.Split = "test"
    ):
        self.config, self.folder, self.experiment, self.split = config, folder, experiment, split
        self.embedded = config.base.path == EMBEDDED
        self.protocol = _check_sampling(config.sampling, experiment.components)
        if self.embedded:
            self.prompts = _check_scoring(config.evaluation, self.protocol, split)
        else:
            _check_previews(config.evaluation)
        self.judges = portraits.load_judges() if self.embedded else None
        self.artist = Artist(
            experiment.components, Sampling(config.sampling.num_steps, config.sampling.guidance_scale), mesh
        )
        frozen = experiment.extra_params
        self.extra = place(frozen, jax.tree.map(lambda _: replicated(mesh), frozen))

    def with_parameters(self, params: Mapping[str, Any]):
        """The function that draws with these parameters; see `Artist`."""
        return self.artist.with_parameters({**params, **self.extra})

    def preview(self) -> Preview:
        """Held-out people, drawn and, in the embedded world, scored."""
        sitters, noise_shape = self._embedded_sitters() if self.embedded else self._recorded_sitters()
        return Preview(self.with_parameters, sitters, noise_shape, self.judges, self.config.sampling.identity_scale)

    def finish(self, result: Result) -> None:
        """Scores and draws; process 0 writes samples.png, report.html and, where there are judges, metrics.json."""
        facts = dict(result.facts)
        if self.embedded:
            evaluation = self._evaluate(result.params)
            facts["protocol"] = self.protocol_facts()
            samples, scores, details = draw_samples(evaluation.grid), evaluation.scores, evaluation.details
        else:
            samples, scores, details = self.preview()(result.params)[0]["samples"], {}, {}
        if jax.process_index():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if scores:
            write_metrics(self.folder / "metrics.json", scores, details=details, **facts)
        write_atomically(self.folder / "samples.png", png_bytes(samples))
        write_report(
            self.folder / "report.html",
            title=f"PIDiff: {self.folder.name}",
            scores=scores,
            details=details,
            samples=samples,
            history=result.history,
            config=json.loads(self.config.to_json_best_effort()),
            parameter_table=result.params_table,
            facts=facts,
        )
        if scores:
            print(scores_text(scores))
        for name in RESULTS:
            if (self.folder / name).is_file():
                print(self.folder / name)

    def _evaluate(self, params: Mapping[str, Any]) -> Evaluation:
        """The scores of the embedded world, on people and prompts of the split."""
        num_people = self.config.evaluation.num_people
        people = portraits.held_out_people(self.split, num_people, embedded_faces.load_wplus_encoder())
        draw, noise_shape = self.with_parameters(params), self._embedded_noise_shape()
        return evaluate_identity(draw, self.judges, people, self.prompts, noise_shape, self.protocol)

    def protocol_facts(self) -> dict[str, Any]:
        """What the scores depend on beside the parameters, for metrics.json and the report."""
        num_people = self.config.evaluation.num_people
        return {
            "split": self.split,
            "num_people": num_people,
            "num_prompts": len(self.prompts.texts),
            "num_diversity_people": min(self.protocol.num_diversity_people, num_people),
            "num_seeds": self.protocol.num_seeds,
            "identity_scale": self.protocol.identity_scale,
            "guidance_scale": float(self.config.sampling.guidance_scale),
            "sampling_steps": self.config.sampling.num_steps,
            "seed": self.protocol.seed,
        }

    def _embedded_noise_shape(self) -> tuple[int, int, int]:
        spec = self.experiment.components.vae.spec
        side = embedded_faces.RESOLUTION_PX // spec.downsampling
        return side, side, spec.latent_channels

    def _embedded_sitters(self) -> tuple[Sitters, tuple[int, int, int]]:
        people = portraits.held_out_people("validation", PREVIEW_PEOPLE, embedded_faces.load_wplus_encoder())
        prompts = portraits.held_out_prompts(PREVIEW_PEOPLE, "validation")
        sitters = Sitters(
            people.references, people.wplus, prompts.texts, prompts.text_ids, people.gallery, prompts.attributes
        )
        return sitters, self._embedded_noise_shape()

    def _recorded_sitters(self) -> tuple[Sitters, tuple[int, int, int]]:
        """The first people of the validation records; their pictures come from the latents."""
        source, records = self.experiment.validation_source(), {}
        for index in range(len(source)):
            record = source[index]
            records.setdefault(int(record["person_id"]), record)
            if len(records) == self.config.evaluation.num_preview_people:
                break
        batch = {name: np.stack([r[name] for r in records.values()]) for name in source[0]}
        components = self.experiment.components
        decode = jax.jit(lambda params, x: components.vae.apply({"params": params}, x, method="decode"))
        pixels = decode(self.experiment.extra_params["vae"], batch["latent_mean"])
        sitters = Sitters(
            references=np.asarray(jnp.clip(pixels * 0.5 + 0.5, 0.0, 1.0)),
            wplus=batch["wplus"],
            texts=tuple(components.tokenizer.batch_decode(batch["text_ids"], skip_special_tokens=True)),
            text_ids=batch["text_ids"],
        )
        return sitters, batch["latent_mean"].shape[1:]


def _check_sampling(sampling: ConfigDict, components: Components) -> Protocol:
    """Checks how pictures are to be drawn; returns what is drawn for the scores."""
    c = components
    with _about("config.sampling.num_steps"):
        ddim_timesteps(
            c.schedule.num_steps, sampling.num_steps, spacing=c.timestep_spacing, steps_offset=c.steps_offset
        )
    if not math.isfinite(sampling.guidance_scale):
        raise ValueError(
            f"config.sampling.guidance_scale: expected a finite number, got {sampling.guidance_scale}; 1 to 10 are usual"
        )
    with _about("config.sampling.identity_scale"):
        return Protocol(batch_size=PREVIEW_PEOPLE, identity_scale=float(sampling.identity_scale))


def _check_scoring(evaluation: ConfigDict, protocol: Protocol, split: portraits.Split) -> Prompts:
    """Checks the numbers of people and prompts to score; returns the prompts."""
    with _about("config.evaluation.num_people"):
        person_ids(split, evaluation.num_people)
    with _about("config.evaluation.num_prompts"):
        prompts = portraits.held_out_prompts(evaluation.num_prompts, split)
        if evaluation.num_prompts < protocol.num_grid_prompts:
            raise ValueError(
                f"expected at least {protocol.num_grid_prompts}, which samples.png shows, got {evaluation.num_prompts}; "
                "ask for more"
            )
    return prompts


def _check_previews(evaluation: ConfigDict) -> None:
    if evaluation.num_preview_people < 1:
        raise ValueError(
            f"config.evaluation.num_preview_people: expected at least 1, got {evaluation.num_preview_people}; correct it"
        )


@contextlib.contextmanager
def _about(key: str) -> Iterator[None]:
    """Puts the config key that is being checked before an error's text."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
