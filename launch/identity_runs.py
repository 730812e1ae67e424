"""What the commands draw and score of an identity training: previews on the way, results at the end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pidiff_jax import embedded_faces
from pidiff_jax.evaluation import portraits
from pidiff_jax.evaluation.drawing import Artist
from pidiff_jax.evaluation.identity import Evaluation, Protocol, evaluate_identity
from pidiff_jax.evaluation.metrics_file import write_atomically, write_metrics
from pidiff_jax.evaluation.pictures import draw_samples, png_bytes
from pidiff_jax.evaluation.preview import Preview, Sitters
from pidiff_jax.evaluation.report import scores_text, write_report
from pidiff_jax.pipeline import Sampling
from pidiff_jax.sharding.rules import place, replicated
from pidiff_jax.train.build_identity import EMBEDDED
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.train.run import Result

RESULTS = ("samples.png", "report.html", "metrics.json")
PREVIEW_PEOPLE = 16  # also the batch size of the scoring, so that one compiled sampler serves both


class IdentityExaminer:
    """Draws and scores one identity training; the samplers are compiled once, whoever uses them first.

    folder: where the results go.
    """

    def __init__(self, config: ConfigDict, folder: Path, experiment: Experiment, mesh: Mesh):
        self.config, self.folder, self.experiment = config, folder, experiment
        self.embedded = config.base.path == EMBEDDED
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
        if self.embedded:
            evaluation = self._evaluate(result.params)
            samples, scores, details = draw_samples(evaluation.grid), evaluation.scores, evaluation.details
        else:
            samples, scores, details = self.preview()(result.params)[0]["samples"], {}, {}
        if jax.process_index():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if scores:
            write_metrics(self.folder / "metrics.json", scores, details=details, **result.facts)
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
            facts=result.facts,
        )
        if scores:
            print(scores_text(scores))
        for name in RESULTS:
            if (self.folder / name).is_file():
                print(self.folder / name)

    def _evaluate(self, params: Mapping[str, Any]) -> Evaluation:
        """The scores of the embedded world, on people and prompts of its test split."""
        wanted = self.config.evaluation
        protocol = Protocol(batch_size=PREVIEW_PEOPLE, identity_scale=float(self.config.sampling.identity_scale))
        people = portraits.held_out_people("test", wanted.num_people, embedded_faces.load_wplus_encoder())
        prompts = portraits.held_out_prompts(wanted.num_prompts)
        draw = self.with_parameters(params)
        return evaluate_identity(draw, self.judges, people, prompts, self._embedded_noise_shape(), protocol)

    def _embedded_noise_shape(self) -> tuple[int, int, int]:
        spec = self.experiment.components.vae.spec
        side = embedded_faces.RESOLUTION_PX // spec.downsampling
        return side, side, spec.latent_channels

    def _embedded_sitters(self) -> tuple[Sitters, tuple[int, int, int]]:
        people = portraits.held_out_people("validation", PREVIEW_PEOPLE, embedded_faces.load_wplus_encoder())
        prompts = portraits.held_out_prompts(PREVIEW_PEOPLE)
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
