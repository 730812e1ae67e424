"""The proof of an export: what was written is read again, and draws what the run draws, in JAX and in PyTorch."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pidiff_jax.convert.clip_tokenizer import tokenize
from pidiff_jax.evaluation.identity import draw_noise
from pidiff_jax.evaluation.subjects import PreviewPeople
from pidiff_jax.export.base_model import write_base_model
from pidiff_jax.export.format import Export, Format, Scenes
from pidiff_jax.export.torch_pipeline import missing_packages
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.runs.saved_run import SavedRun
from pidiff_jax.sampling.compiled import CompiledSampler
from pidiff_jax.sampling.generate import Sampling, steps_between

NUM_PEOPLE = NUM_PROMPTS = 2
# Of pixels in [0, 1], in float32; half-precision files are other weights, and only have to draw numbers.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Finding:
    """One comparison with the run: largest difference of a pixel in [0, 1]; None where it couldn't be made."""

    where: str
    difference: float | None

    def __str__(self) -> str:
        return f"{self.where}: " + ("not compared" if self.difference is None else f"{self.difference:.1e}")


class Sitting:
    """Two people in two scenes, drawn by a run; what comes out of an export is held against the pictures."""

    def __init__(self, run: SavedRun, with_identity: bool):
        self.run, self._with_identity, sampling = run, with_identity, run.config.sampling
        guidance_scale = max(float(sampling.guidance_scale), 1.0)  # below, diffusers doesn't guide
        self._sampling = Sampling(sampling.num_steps, guidance_scale)
        start = float(sampling.identity_start)
        self._identity_start = start if steps_between(sampling.num_steps, start).any() else 0.0
        self._sampler = CompiledSampler(run.components, run.mesh)

    @cached_property
    def _preview(self) -> PreviewPeople:
        return self.run.world.preview_people(self.run.components, partial(self._sampler.decode, self.run.params["vae"]))

    def people(self) -> dict[str, Float[np.ndarray, "l d"]]:
        """Their W+ codes, by name."""
        codes = self._preview.wplus
        return {f"person_{i}": codes[i % len(codes)] for i in range(NUM_PEOPLE)}

    @cached_property
    def scenes(self) -> Scenes:
        """Every person in every scene."""
        codes, texts = list(self.people().values()), self._preview.texts
        jobs = np.array([(person, prompt, 0) for person in range(NUM_PEOPLE) for prompt in range(NUM_PROMPTS)])
        return Scenes(
            wplus=np.stack([codes[person] for person in jobs[:, 0]]),
            texts=[texts[prompt % len(texts)] for prompt in jobs[:, 1]],
            noise=np.asarray(draw_noise(0, jobs, self.run.components.noise_shape)),
            # A run that draws with 0, or with the identity in no step, proves nothing of it.
            identity_scale=float(self.run.config.sampling.identity_scale or 1.0) if self._with_identity else 0.0,
            identity_start=self._identity_start,
            num_steps=self._sampling.num_steps,
            guidance_scale=self._sampling.guidance_scale,
        )

    @cached_property
    def pictures(self) -> Float[np.ndarray, "n h w 3"]:
        """What the run draws."""
        return self.draw(self.run.params)

    def draw(self, params: Mapping[str, Any]) -> Float[np.ndarray, "n h w 3"]:
        """What parameters of the same shapes draw; in full float32 on accelerators too."""
        s, ids = self.scenes, tokenize(self.run.components.tokenizer, list(self.scenes.texts))
        with jax.default_matmul_precision("highest"):
            generate = self._sampler.with_parameters(params, self._sampling, s.identity_start)
            pixels, _ = generate(s.wplus, ids, jnp.asarray(s.noise), s.identity_scale)
        return np.asarray(pixels)


def prove(form: Format, export: Export, folder: Path, sitting: Sitting) -> list[Finding]:
    """Reads and draws from what `form` wrote to `folder`.

    Raises:
        ValueError: a tensor isn't what the run has, or pictures differ by more than the tolerance.
    """
    findings = [Finding("JAX", _difference(sitting.draw(_read(form, export, folder)), sitting.pictures))]
    where = "PyTorch"
    if missing := missing_packages():
        findings.append(Finding(f"{where} ({' and '.join(missing)} not installed)", None))
    else:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".base.") as base:
            if form.needs_base:
                write_base_model(export, Path(base) / "base", np.float32)
            drawn = form.draw_in_torch(export, folder, Path(base) / "base", sitting.scenes)
        name = f"{where}, diffusers {version('diffusers')}"
        if drawn is None:
            findings.append(Finding(f"{where} (has no reader of this format)", None))
        else:
            findings.append(Finding(name, _difference(drawn, sitting.pictures)))
    for finding in findings:
        _check(finding, export.dtype)
    return findings


def _read(form: Format, export: Export, folder: Path) -> dict[str, Any]:
    """The run's parameters with those that were written in their place, which must be theirs bit for bit."""
    params, found = flatten(export.run.params), flatten(form.read(export, folder))
    if form.draws_identity and (lost := sorted(export.run.trained - found.keys())):
        raise ValueError(
            f"expected everything that was trained in the written files, got no {lost[0]}; this is a defect of pidiff_jax: "
            "report it"
        )
    for path, leaf in found.items():
        expected = np.asarray(params[path]).astype(export.dtype)
        if not np.array_equal(np.asarray(leaf).astype(export.dtype), expected):
            raise ValueError(
                f"expected {path} in the written files as the run has it, got other numbers; this is a defect of pidiff_jax: "
                "report it"
            )
        params[path] = jax.device_put(np.asarray(leaf, params[path].dtype), params[path].sharding)
    return unflatten(params)


def _difference(drawn: np.ndarray, pictures: np.ndarray) -> float:
    return float(np.abs(drawn - pictures).max())


def _check(finding: Finding, dtype: np.dtype) -> None:
    if finding.difference is None:
        return
    limit = TOLERANCE if dtype == np.float32 else np.inf
    if not np.isfinite(finding.difference) or finding.difference > limit:
        raise ValueError(
            f"expected pictures within {TOLERANCE:g} of the run's from the written files, got {finding}; nothing was left at "
            "the output"
        )
