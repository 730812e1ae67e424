"""One training from config to results: build, resume, train, export."""

import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.embedded import save_weights
from pidiff_jax.optim.rules import merge
from pidiff_jax.train.build import build_experiment, loop_settings
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.train.hooks import Checkpoints, MetricsLog, Previews, Validation
from pidiff_jax.train.loop import Hook, Run, train

# Keys that may change between the parts of an interrupted run: they decide how long and how often, not what is computed.
CADENCE_KEYS = ("log_every_steps", "validate_every_steps", "checkpoint_every_steps", "num_checkpoints", "max_seconds")
# Files of embedded weights that a task makes: file name -> names of the top-level parameter trees.
EXPORTS = {
    "autoencoder": {"vae": ("vae",)},
    "text_to_image": {"base": ("unet", "text_encoder")},
    "wplus": {"wplus": ("encoder", "synthesis", "latent_avg")},
    "recogniser": {"recogniser": ("recogniser",)},
    "scenes": {"scenes": ("scenes",)},
}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def claim_workdir(workdir: Path, config: ConfigDict) -> bool:
    """Makes the folder of a run, or checks that it belongs to the same config; returns whether the run is complete.

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
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / "config.json.tmp"
    partial.write_text(json.dumps(wanted, indent=2))
    partial.rename(stored)
    return False


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b and prefix + name not in CADENCE_KEYS:
            found.append(f"{prefix}{name} ({a!r} -> {b!r})")
    return found


def train_experiment(
    config: ConfigDict,
    workdir: Path,
    *,
    started: float,
    make_preview: Callable[[Experiment], Any] | None = None,
    finish: Callable[[Experiment, dict, MetricsLog, dict[str, Any]], None] | None = None,
) -> None:
    """Trains `config` in `workdir`, from its last checkpoint on.

    started: `time.perf_counter()` at the start of the program.
    make_preview: from an experiment, `(params) -> (pictures, scores)` for validation during training; None draws nothing.
    finish: called at the end with the experiment, the averaged parameters, the log and facts about the run.
    """
    if claim_workdir(workdir, config):
        print(f"{workdir}: this run is complete; its results are there. Choose another --workdir to train again.")
        return
    experiment, settings = build_experiment(config), loop_settings(config)
    run = Run(experiment, settings)
    manager = CheckpointManager(
        workdir / "checkpoints",
        config=json.loads(config.to_json_best_effort()),
        frozen=experiment.frozen_sources,
        save_every_steps=config.checkpoint_every_steps,
        keep_last=config.num_checkpoints,
    )
    restored = manager.restore_latest(run.state)
    if restored is not None:
        run.state = restored.state
        run.loader.set_state(restored.data_state)
        print(f"resuming from step {run.step} of {settings.num_steps}")
    print(run.params_table)
    log = MetricsLog(workdir)
    hooks: list[Hook] = [log, Validation(config.validate_every_steps, log)]
    if make_preview is not None:
        hooks.append(Previews(config.validate_every_steps, log, make_preview(experiment)))
    hooks.append(Checkpoints(manager))
    with manager:
        train(run, hooks, started)
        manager.save(run.state, run.loader.get_state())
    facts = {"num_steps": run.step, "seconds_training": time.perf_counter() - started, "versions": versions(),
             "fingerprints": dict(experiment.frozen_sources)}  # fmt: skip
    params = nn.meta.unbox(merge(run.average, run.frozen))
    if jax.process_index() == 0:
        _export(experiment, params, log, facts, workdir)
    if finish is not None:
        finish(experiment, params, log, facts)
    (workdir / "complete.json").write_text(json.dumps(facts, indent=2))


def _export(experiment: Experiment, params: dict, log: MetricsLog, facts: dict, workdir: Path) -> None:
    last = log.history()[-1] if log.history() else {}
    for name, trees in EXPORTS.get(experiment.name, {}).items():
        card = {**facts, "scores": {k: v for k, v in last.items() if k.startswith("validation/")}}
        path = workdir / "weights" / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_weights(path, {tree: params[tree] for tree in trees}, card)
