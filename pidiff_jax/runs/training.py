"""A run from its config to its results: begin or resume, train, draw and score."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.evaluation.evaluator import EvaluationSettings, Evaluator
from pidiff_jax.paths import flatten
from pidiff_jax.runs.build import build_experiment, evaluation_settings
from pidiff_jax.runs.folder import CHECKPOINTS, COMPLETE, EVENTS, Workdir
from pidiff_jax.runs.history import HistoryHook
from pidiff_jax.runs.results import write_results
from pidiff_jax.runs.saved_run import SavedRun, run_facts
from pidiff_jax.sampling.components import Components
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import place, replicated
from pidiff_jax.train.build import loop_settings
from pidiff_jax.train.experiment import Experiment, IdentityExperiment, Weights
from pidiff_jax.train.hooks import CheckpointHook, PreviewHook, ProfileHook, ValidationHook
from pidiff_jax.train.loop import Hook, TrainingRun, train
from pidiff_jax.train.plan import make_plan
from pidiff_jax.train.termination import Terminated
from pidiff_jax.worlds import World, open_world


@dataclass(frozen=True)
class DrawingParts:
    """What a task that draws has beside its training: a model in its world, and how it is drawn and scored."""

    world: World
    components: Components
    settings: EvaluationSettings

    def evaluator(self, weights: Weights, mesh: Mesh) -> Evaluator:
        """What draws and scores; the weights that only drawing needs are placed on the mesh."""
        extra = place(weights.extra, jax.tree.map(lambda _: replicated(mesh), weights.extra))
        preview_people = partial(self.world.preview_people, self.components)
        return Evaluator(self.components, extra, mesh, self.settings, preview_people)


@dataclass(frozen=True)
class RunParts:
    """What a config asks for, before anything is loaded.

    drawing: None where the task draws nothing.
    """

    experiment: Experiment
    drawing: DrawingParts | None = None


def build_parts(config: Any) -> RunParts:
    """Builds what the config asks for, and looks whether everything is there.

    Raises:
        ValueError, FileNotFoundError: the config asks for something that does not exist; says what and where.
    """
    world = open_world(config)
    experiment = build_experiment(config, world)
    if not isinstance(experiment, IdentityExperiment):
        return RunParts(experiment)
    settings = evaluation_settings(config, world, experiment.components)
    return RunParts(experiment, DrawingParts(world, experiment.components, settings))


def train_run(
    config: ConfigDict, workdir: Path, *, started: float, build: Callable[[Any], RunParts] = build_parts
) -> None:
    """Trains `config` in `workdir`, from its last checkpoint on, then draws and scores where the task draws.

    Args:
        started: `time.perf_counter()` at the start of the program.
        build: makes the parts from the config.
    """
    folder = Workdir(workdir, config)
    try:
        if folder.check():
            report(
                f"{workdir}: this run is complete; its results are there. Raise --config.num_steps to go on, or "
                "choose another --workdir to train again."
            )
        else:
            _train_in(folder, config, started, build)
    finally:
        folder.release()


def _train_in(folder: Workdir, config: ConfigDict, started: float, build: Callable[[Any], RunParts]) -> None:
    settings = loop_settings(config)  # first what is checked at once
    parts = build(config)
    mesh = make_mesh(settings.mesh)
    plan = make_plan(parts.experiment, settings, mesh)
    weights = parts.experiment.load()
    run, drawing = TrainingRun(plan, weights), parts.drawing
    evaluator = None if drawing is None else drawing.evaluator(weights, mesh)
    del weights  # the host's copy of a large base is not kept beside the placed one
    folder.claim()  # only now: what can't be built leaves no folder
    history = _train(run, folder, started, evaluator)
    facts = run_facts(run.step, history.seconds(), run.fingerprints)
    if drawing is not None and evaluator is not None:
        saved = SavedRun(
            folder=folder.path,
            config=config,
            world=drawing.world,
            components=drawing.components,
            params=evaluator.complete(run.params),
            mesh=mesh,
            reports=history.reports(),
            parameter_table=plan.parameter_table,
            trained=frozenset(flatten(plan.state.trainable)),
            facts=facts,
        )
        write_results(saved, evaluator, folder.path)
    if jax.process_index() == 0:
        _write_weights(run, folder, facts, history)
    if run.step < settings.num_steps:
        report(f"stopped by config.max_seconds at step {run.step} of {settings.num_steps}; run again to go on")
    elif jax.process_index() == 0:
        folder.write(COMPLETE, facts)


def _train(run: TrainingRun, folder: Workdir, started: float, evaluator: Evaluator | None) -> HistoryHook:
    """Trains from the last checkpoint on."""
    settings = run.settings
    with CheckpointManager(
        folder.path / CHECKPOINTS,
        config=folder.config,
        frozen=run.fingerprints,
        save_every_steps=settings.checkpoint_every_steps,
        keep_last=settings.num_checkpoints,
    ) as manager:
        restored = manager.restore_latest(run.state)
        if restored is not None:
            run.resume(restored.state, restored.data_state)
            report(f"resuming from step {run.step} of {settings.num_steps}")
        report(run.plan.parameter_table)
        history = HistoryHook(folder.path, started)
        # Checkpoints come first: whatever goes wrong when something is validated or drawn, the training until then is saved.
        checkpoints = CheckpointHook(manager, folder.check_lease)
        hooks: list[Hook] = [_tell_first_step(started), history, checkpoints]
        if settings.profile_steps is not None:
            first_step, last_step = settings.profile_steps
            profiler = ProfileHook(first_step, last_step, folder.path / EVENTS)
            profiler.start_if_due(run.step + 1, is_last=run.step >= settings.num_steps)
            hooks.insert(0, profiler)
        hooks.append(ValidationHook(run, history.write))
        if evaluator is not None:
            hooks.append(PreviewHook(settings.validate_every_steps, history.write, lambda: evaluator.previewer))
        step = run.step
        try:
            train(run, hooks, started)
        except Terminated:
            if run.step > step:
                checkpoints.save(run)
                manager.wait()
            raise
    return history


def _tell_first_step(started: float) -> Hook:
    """A hook that says once how long it took from the start of the program to the first finished step."""
    told = False

    def tell(run: TrainingRun, step: int, metrics: Any, is_last: bool) -> None:
        nonlocal told
        if not told:
            told = True
            report(f"first step after {time.perf_counter() - started:.1f} s")

    return tell


def _write_weights(run: TrainingRun, folder: Workdir, facts: dict[str, Any], history: HistoryHook) -> None:
    """Writes what the run was for, where that is a file of weights; at a time limit too, since the rates have decayed."""
    if run.plan.experiment.write_weights is None:
        return
    reports = history.reports()
    last = reports[-1] if reports else {}
    scores = {name: value for name, value in last.items() if name.startswith("validation/")}
    run.plan.experiment.write_weights(folder.path, run.params, {**facts, "scores": scores, "config": folder.config})


def report(text: str) -> None:
    """Says something to the user, once, however many processes there are."""
    if jax.process_index() == 0:
        tqdm.write(text)  # beside a progress bar, not into it
        sys.stdout.flush()
