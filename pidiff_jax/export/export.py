"""An export from a run's folder to a folder of files that have proved themselves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn

from pidiff_jax.convert.drafts import check_free, draft_of
from pidiff_jax.export.adapter import AdapterFormat
from pidiff_jax.export.base_model import BaseModelFormat
from pidiff_jax.export.comfyui import ComfyUIFormat
from pidiff_jax.export.format import Export, Format
from pidiff_jax.export.identity_pipeline import IdentityPipelineFormat
from pidiff_jax.export.ip_adapter import IPAdapterFormat
from pidiff_jax.export.proof import Finding, Sitting, prove
from pidiff_jax.export.wplus_adapter import WPlusAdapterFormat
from pidiff_jax.optim.rules import assign_groups, split
from pidiff_jax.paths import flatten
from pidiff_jax.pipeline.people import read_people
from pidiff_jax.runs.build import build_adapter
from pidiff_jax.runs.saved_run import open_run, override, read_config, without_init
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.worlds import open_world

_FORMATS: tuple[Format, ...] = (
    AdapterFormat(), IPAdapterFormat(), BaseModelFormat(), IdentityPipelineFormat(), WPlusAdapterFormat(), ComfyUIFormat()
)  # fmt: skip
FORMATS: Mapping[str, Format] = {form.name: form for form in _FORMATS}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_VARIANT_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Report:
    """What was written, what one does with it, and how far its pictures are from the run's; no findings where nobody looked."""

    folder: Path
    step: int
    usage: str
    findings: list[Finding]

    def __str__(self) -> str:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        lines = [f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in files]
        checked = [f"largest difference from the run's pictures in {finding}" for finding in self.findings]
        usage = f"to use it: {self.usage}"
        return "\n".join([f"step {self.step}", *lines, usage, *(checked or ["not checked"])])


def export_run(
    workdir: Path,
    output: Path,
    format: str,
    *,
    step: int | None = None,
    dtype: str | None = None,
    variant: str | None = None,
    identities: Sequence[str] = (),
    wplus_encoder: Path | None = None,
    licence: str | None = None,
    check: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> Report:
    """Writes a run, or an adapter file of one, in another form; `output` appears as a whole, once it has proved itself.

    Args:
        workdir: of the run.
        output: the new folder.
        format: one of `FORMATS`.
        step: of the checkpoint; None takes the newest.
        dtype: of the weights, one of `DTYPES`; None: that of the variant, else float32.
        variant: in the names of a diffusers folder's weights, for example "fp16".
        identities: whom to send along, see `read_people`; by default two people of the world.
        wplus_encoder: checkpoint that encodes photographs, for worlds that have no encoder of their own.
        licence: of the weights, for their metadata.
        check: whether the files are read and drawn from again.
        overrides: dotted config key -> value, such as {"base.path": "where the base is now"}.

    Raises:
        FileExistsError: something is at `output`.
        FileNotFoundError, ValueError: there is no such run, the format can't hold it, or the files failed their proof.
    """
    form = FORMATS[format]
    if jax.process_count() > 1:
        raise ValueError(
            f"expected one process to export, got {jax.process_count()} that share the work; start the command once"
        )
    if variant is not None and not form.has_variants:
        raise ValueError(f"expected no --variant for --format={format}, got {variant!r}; leave it out, or use --dtype")
    if variant is not None and dtype is not None and _VARIANT_DTYPES.get(variant, dtype) != dtype:
        raise ValueError(
            f"expected --dtype={_VARIANT_DTYPES[variant]} beside --variant={variant}, got {dtype}; leave --dtype out"
        )
    if identities and not form.has_people:
        raise ValueError(f"expected no --identity for --format={format}, which holds no people; leave it out")
    check_free(output)
    config = read_config(workdir)
    override(config, overrides or {})
    world = open_world(config)
    experiment = build_adapter(without_init(config), world)
    form.check(experiment.components, trained_paths(experiment))
    faces = partial(world.faces, wplus_encoder)
    people = read_people(identities, world, experiment.components.identity_mapper.spec, faces)
    run = open_run(workdir, step, overrides={**(overrides or {}), "compute_dtype": "float32"})
    sitting = Sitting(run, form.draws_identity)
    export = Export(
        run=run,
        config=json.loads(config.to_json_best_effort()),
        schedule=world.base_model().schedule,
        people=(lambda: people) if people else sitting.people,
        dtype=np.dtype(DTYPES[dtype or _VARIANT_DTYPES.get(variant or "", "float32")]),
        variant=variant,
        licence=licence,
        picture=sitting.pictures[0] if check else None,
    )
    findings: list[Finding] = []
    with draft_of(output) as folder:
        folder.mkdir()
        form.write(export, folder)
        if check:
            findings = prove(form, export, folder, sitting)
    return Report(output, run.facts["num_steps"], form.usage.format(folder=output), findings)


def trained_paths(experiment: Experiment) -> frozenset[str]:
    """The paths of the parameters that an experiment trains."""
    shapes = nn.meta.unbox(experiment.shapes)
    return frozenset(flatten(split(shapes, assign_groups(experiment.rules, shapes))[0]))
