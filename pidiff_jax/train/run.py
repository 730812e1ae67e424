"""One training from config to results: build, resume, train, export."""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.embedded import save_weights
from pidiff_jax.optim.rules import flatten, listing, merge
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import place
from pidiff_jax.train.build import build_experiment, loop_settings
from pidiff_jax.train.experiment import Experiment, partition
from pidiff_jax.train.hooks import Checkpoints, MetricsLog, Preview, Previews, Validation, read_history
from pidiff_jax.train.loop import Hook, LoopSettings, Run, train
from pidiff_jax.train.workdir import COMPLETE, Workdir

# Files of embedded weights that a task makes: file name -> names of the top-level parameter trees.
EXPORTS = {
    "autoencoder": {"vae": ("vae",)},
    "text_to_image": {"base": ("unet", "text_encoder")},
    "wplus": {"wplus": ("encoder", "synthesis", "latent_avg")},
    "recogniser": {"recogniser": ("recogniser",)},
    "scenes": {"scenes": ("scenes",)},
    "segmenter": {"segmenter": ("segmenter",)},
}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class Result:
    """A training that has come to its last step, or to its time limit.

    params: the whole tree, the trainable part averaged, on the mesh.
    history: all reports, in order of their steps.
    """

    params: dict[str, Any]
    mesh: Mesh
    history: list[dict[str, float | int]]
    params_table: str
    facts: dict[str, Any]


@runtime_checkable
class Examiner(Protocol):
    """What looks at a training: pictures and scores on the way, results at the end. Called in every process."""

    def preview(self) -> Preview:
        """What to draw and score at every validation."""

    def finish(self, result: Result) -> None:
        """Draws, scores and writes the results."""


def train_experiment(
    config: ConfigDict,
    workdir: Path,
    *,
    started: float,
    make_examiner: Callable[[Experiment, Mesh], Examiner] | None = None,
) -> None:
    """Trains `config` in `workdir`, from its last checkpoint on.

    started: `time.perf_counter()` at the start of the program.
    make_examiner: None draws and scores nothing; validation losses are logged in any case.
    """
    folder = Workdir(workdir, config)
    if folder.check():
        report(f"{workdir}: this run is complete; its results are there. Choose another --workdir to train again.")
        return
    experiment, settings = build_experiment(config), loop_settings(config)
    examiner = None
    if make_examiner is not None:  # before the data are made: it looks whether it can draw what the config asks for
        examiner = make_examiner(replace(experiment, params={}), make_mesh(settings.mesh))
    run = Run(experiment, settings)
    del experiment  # with the host's copy of the base; the run has placed its own
    folder.claim()  # only now: what can't be built leaves no folder
    try:
        result = _train(run, folder, started, examiner)
        if examiner is not None:
            examiner.finish(result)
        if run.step < run.settings.num_steps:
            report(f"stopped by config.max_seconds at step {run.step} of {run.settings.num_steps}; run again to go on")
        elif jax.process_index() == 0:
            _export(run.experiment, result, config, workdir)
            folder.write(COMPLETE, result.facts)
    finally:
        folder.release()


def _train(run: Run, folder: Workdir, started: float, examiner: Examiner | None) -> Result:
    """Trains from the last checkpoint on, and saves at the end."""
    settings = run.settings
    manager = open_checkpoints(folder.path, folder.config, run.experiment, settings)
    restored = manager.restore_latest(run.state)
    if restored is not None:
        run.state = restored.state
        run.loader.set_state(restored.data_state)
        report(f"resuming from step {run.step} of {settings.num_steps}")
    report(run.params_table)
    log = MetricsLog(folder.path, started)
    # Checkpoints come first: whatever goes wrong when something is validated or drawn, the training until then is saved.
    hooks: list[Hook] = [log, Checkpoints(manager), Validation(run, log)]
    if examiner is not None:
        hooks.append(Previews(settings.validate_every_steps, log, examiner.preview()))
    with manager:
        train(run, hooks, started)
        manager.save(run.state, run.loader.get_state())
    facts = {"num_steps": run.step, "seconds_training": log.seconds(), "versions": versions(),
             "fingerprints": dict(run.experiment.frozen_sources)}  # fmt: skip
    return Result(merge(run.average, run.frozen), run.mesh, log.history(), run.params_table, facts)


def report(text: str) -> None:
    """Says something to the user, once, however many processes there are."""
    if jax.process_index() == 0:
        print(text, flush=True)


def load_run(config: ConfigDict, workdir: Path, step: int | None = None) -> tuple[Experiment, Result]:
    """A training as it stood at a checkpoint (None: the newest), to be drawn from and scored; opens no training data.

    Raises:
        ValueError: no such checkpoint, or one of other parameters or another base model than the config's.
    """
    experiment = build_experiment(config)
    mesh = make_mesh(dict(config.mesh))
    parts = partition(experiment, mesh)
    stored, metadata = load_parameters(workdir / "checkpoints", step=step)
    if metadata["frozen"] != dict(experiment.frozen_sources):
        raise ValueError(
            f"expected the base model that {workdir} was trained on ({metadata['frozen']}), got "
            f"{dict(experiment.frozen_sources)}; point to the right one (--base_path of launch.evaluate)"
        )
    if flatten(stored).keys() != flatten(parts.trainable).keys():
        different = sorted(flatten(stored).keys() ^ flatten(parts.trainable).keys())
        raise ValueError(f"expected the parameters that the config trains, got differences at {listing(different)}")
    history = read_history(workdir / "history.jsonl")
    seconds = [entry["seconds"] for entry in history if "seconds" in entry and entry["step"] <= metadata["step"]]
    facts = {"num_steps": metadata["step"], "seconds_training": max(seconds, default=0.0), "versions": versions(),
             "fingerprints": dict(experiment.frozen_sources)}  # fmt: skip
    frozen = place(parts.frozen, parts.frozen_shardings, experiment.frozen_dtype)
    params = merge(place(stored, parts.trainable_shardings), frozen)
    return experiment, Result(params, mesh, history, parts.table, facts)


def open_checkpoints(
    workdir: Path, config: Mapping[str, Any], experiment: Experiment, settings: LoopSettings
) -> CheckpointManager:
    """The checkpoints of the run in `workdir`."""
    return CheckpointManager(
        workdir / "checkpoints",
        config=config,
        frozen=experiment.frozen_sources,
        save_every_steps=settings.checkpoint_every_steps,
        keep_last=settings.num_checkpoints,
    )


def _export(experiment: Experiment, result: Result, config: ConfigDict, workdir: Path) -> None:
    """Writes the weights that the embedded trainings are for, unless they are there."""
    last = result.history[-1] if result.history else {}
    for name, trees in EXPORTS.get(experiment.name, {}).items():
        scores = {k: v for k, v in last.items() if k.startswith("validation/")}
        card = {**result.facts, "scores": scores, "config": json.loads(config.to_json_best_effort())}
        path = workdir / "weights" / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_weights(path, {tree: result.params[tree] for tree in trees}, card)
