"""One training from config to results: build, resume, train, export."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
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

# Keys that may change between the parts of an interrupted run: they decide how long and how often, not what is computed.
CADENCE_KEYS = ("log_every_steps", "validate_every_steps", "checkpoint_every_steps", "num_checkpoints", "max_seconds")
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


def check_workdir(workdir: Path, config: ConfigDict) -> bool:
    """Checks that the folder of a run is free or belongs to the same config; returns whether the run is complete.

    Raises:
        ValueError: the folder holds another run, or files that are no run.
    """
    stored, wanted = workdir / "config.json", json.loads(config.to_json_best_effort())
    if stored.is_file():
        differences = _differences(json.loads(stored.read_text()), wanted)
        if differences:
            raise ValueError(
                f"expected the config that {workdir} was started with, got other values for {', '.join(differences)}; "
                "choose another --workdir, or the same config to resume"
            )
        return (workdir / "complete.json").is_file()
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"expected an empty folder or one of an earlier run at {workdir}, got other files; choose another --workdir"
        )
    return False


def _claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder of a run, unless it is there."""
    stored = workdir / "config.json"
    if not stored.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        partial = workdir / "config.json.tmp"
        partial.write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=2))
        partial.rename(stored)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b and prefix + name not in CADENCE_KEYS:
            found.append(f"{prefix}{name} ({a!r} -> {b!r})")
    return found


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
    if check_workdir(workdir, config):
        print(f"{workdir}: this run is complete; its results are there. Choose another --workdir to train again.")
        return
    experiment, settings = build_experiment(config), loop_settings(config)
    run = Run(experiment, settings)
    _claim_workdir(workdir, config)  # only now: what can't be built leaves no folder that refuses the corrected config
    manager = open_checkpoints(workdir, config, experiment, settings)
    restored = manager.restore_latest(run.state)
    if restored is not None:
        run.state = restored.state
        run.loader.set_state(restored.data_state)
        print(f"resuming from step {run.step} of {settings.num_steps}")
    print(run.params_table)
    log = MetricsLog(workdir, started)
    hooks: list[Hook] = [log, Validation(settings.validate_every_steps, log)]
    examiner = None if make_examiner is None else make_examiner(experiment, run.mesh)
    if examiner is not None:
        hooks.append(Previews(settings.validate_every_steps, log, examiner.preview()))
    hooks.append(Checkpoints(manager))
    with manager:
        train(run, hooks, started)
        manager.save(run.state, run.loader.get_state())
    facts = {"num_steps": run.step, "seconds_training": log.seconds(), "versions": versions(),
             "fingerprints": dict(experiment.frozen_sources)}  # fmt: skip
    result = Result(merge(run.average, run.frozen), run.mesh, log.history(), run.params_table, facts)
    if jax.process_index() == 0:
        _export(experiment, result, workdir)
    if examiner is not None:
        examiner.finish(result)
    if run.step < settings.num_steps:
        print(
            f"stopped by config.max_seconds at step {run.step} of {settings.num_steps}; run again to go on from there"
        )
    elif jax.process_index() == 0:
        (workdir / "complete.json").write_text(json.dumps(facts, indent=2))


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
            f"{dict(experiment.frozen_sources)}; point config.base at the right one"
        )
    if flatten(stored).keys() != flatten(parts.trainable).keys():
        different = sorted(flatten(stored).keys() ^ flatten(parts.trainable).keys())
        raise ValueError(f"expected the parameters that the config trains, got differences at {listing(different)}")
    history = read_history(workdir / "history.jsonl")
    seconds = [entry["seconds"] for entry in history if "seconds" in entry and entry["step"] <= metadata["step"]]
    facts = {"num_steps": metadata["step"], "seconds_training": max(seconds, default=0.0), "versions": versions(),
             "fingerprints": dict(experiment.frozen_sources)}  # fmt: skip
    params = merge(place(stored, parts.trainable_shardings), place(parts.frozen, parts.frozen_shardings))
    return experiment, Result(params, mesh, history, parts.table, facts)


def open_checkpoints(
    workdir: Path, config: ConfigDict, experiment: Experiment, settings: LoopSettings
) -> CheckpointManager:
    """The checkpoints of the run in `workdir`."""
    return CheckpointManager(
        workdir / "checkpoints",
        config=json.loads(config.to_json_best_effort()),
        frozen=experiment.frozen_sources,
        save_every_steps=settings.checkpoint_every_steps,
        keep_last=settings.num_checkpoints,
    )


def _export(experiment: Experiment, result: Result, workdir: Path) -> None:
    """Writes the weights that the embedded trainings are for, unless they are there."""
    last = result.history[-1] if result.history else {}
    for name, trees in EXPORTS.get(experiment.name, {}).items():
        card = {**result.facts, "scores": {k: v for k, v in last.items() if k.startswith("validation/")}}
        path = workdir / "weights" / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_weights(path, {tree: result.params[tree] for tree in trees}, card)
