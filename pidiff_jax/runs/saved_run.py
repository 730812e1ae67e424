"""A run opened again: its config, components and parameters at a checkpoint, to be drawn from, scored or exported."""

import difflib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.evaluation.evaluator import EvaluationSettings, Evaluator
from pidiff_jax.locations import local_path
from pidiff_jax.optim.rules import merge, split
from pidiff_jax.paths import flatten, listing, unflatten
from pidiff_jax.runs.adapter_file import read_adapter, read_adapter_config
from pidiff_jax.runs.build import IDENTITY, build_adapter, checked_sampling
from pidiff_jax.runs.folder import CHECKPOINTS, CONFIG, read_json
from pidiff_jax.runs.history import Report, read_history, seconds_spent
from pidiff_jax.sampling.components import Components
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import place, replicated, shardings_of
from pidiff_jax.train.plan import lay_out
from pidiff_jax.worlds import World, open_world


@dataclass(frozen=True)
class SavedRun:
    """A run of an identity adapter as it stood after a step.

    components: the model, with its identity branch.
    params: the whole tree, {"unet", "text_encoder", "mapper", "vae"}, the trained part averaged, on the mesh.
    reports: the run's history.
    parameter_table: what was trained, in words. trained: the paths of it.
    facts: `num_steps`, `seconds_training`, `versions` and the base's `fingerprints`.
    """

    folder: Path
    config: ConfigDict
    world: World
    components: Components
    params: Mapping[str, Any]
    mesh: Mesh
    reports: Sequence[Report]
    parameter_table: str
    trained: frozenset[str]
    facts: Mapping[str, Any]

    def evaluator(self, settings: EvaluationSettings) -> Evaluator:
        """What draws and scores this run."""
        preview_people = partial(self.world.preview_people, self.components)
        return Evaluator(self.components, {"vae": self.params["vae"]}, self.mesh, settings, preview_people)


def open_run(
    workdir: Path | str,
    step: int | None = None,
    mesh: Mesh | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SavedRun:
    """Opens a run of an identity adapter; loads its base, but no training data.

    Args:
        workdir: its folder, or the adapter file that was made of it (`runs.adapter_file`).
        step: of the checkpoint; None takes the newest. A file has one.
        mesh: to lie on, whatever the run was trained on; None takes all devices that are here.
        overrides: dotted config key -> value, such as {"base.path": "where the base is now"}.

    Example:
        >>> run = open_run("runs/quickstart")
        >>> run.facts["num_steps"], run.components.identity_mapper.spec.num_tokens
        (1500, 40)

    Raises:
        FileNotFoundError: there is no run, or its base is no longer where it was.
        ValueError: no such checkpoint, or one of other parameters or another base model than the config's.
    """
    workdir, mesh = local_path(workdir, "workdir"), make_mesh() if mesh is None else mesh
    config = read_config(workdir)
    override(config, overrides or {})
    world = open_world(config)
    experiment = build_adapter(without_init(config), world)
    checked_sampling(config.sampling, experiment.components)
    layout = lay_out(experiment, mesh)
    stored, metadata = _load_trained(workdir, step, layout.frozen)
    _check_parameters(stored, layout.trainable)
    weights = experiment.load()
    _check_base(workdir, metadata["frozen"], weights.fingerprints)
    frozen = place(split(weights.params, layout.groups)[1], shardings_of(layout.frozen), experiment.frozen_dtype)
    params = merge(place(stored, shardings_of(layout.trainable)), frozen)
    extra = place(weights.extra, jax.tree.map(lambda _: replicated(mesh), weights.extra))
    reports, last = read_history(workdir), metadata["step"]
    seconds = metadata.get("seconds_training", seconds_spent(reports, last))
    return SavedRun(
        folder=workdir,
        config=config,
        world=world,
        components=experiment.components,
        params={**params, **extra},
        mesh=mesh,
        reports=reports,
        parameter_table=layout.parameter_table,
        trained=frozenset(flatten(layout.trainable)),
        facts=run_facts(last, seconds, weights.fingerprints),
    )


def _load_trained(workdir: Path, step: int | None, frozen: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was trained, and metadata with at least `step` and `frozen`."""
    if not workdir.is_file():
        return load_parameters(workdir / CHECKPOINTS, step=step)
    params, metadata = read_adapter(workdir)
    if step not in (None, metadata["step"]):
        raise ValueError(f"expected the step {metadata['step']} of {workdir}, got {step}; a file has one, leave it out")
    # A file also has those of the adapter's parameters that were frozen; they are as they begin.
    untouched = flatten(frozen).keys()
    return unflatten({path: x for path, x in flatten(params).items() if path not in untouched}), metadata


def without_init(config: ConfigDict) -> ConfigDict:
    """A config that begins with no adapter's file, which may be gone: what it brought is trained, so in every checkpoint."""
    return ConfigDict({key: value for key, value in config.items() if key != "init"})


def override(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets keys of a config, by their dotted names.

    Raises:
        ValueError: an unknown key, or a value of another type than the config's.
    """
    known = {path.replace("/", ".") for path in flatten(config.to_dict())}
    if unknown := sorted(set(values) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        raise ValueError(f"expected keys of the run's config, got {unknown[0]!r}; did you mean {near[0]!r}?")
    try:
        config.update_from_flattened_dict({key: str(v) if isinstance(v, Path) else v for key, v in values.items()})
    except TypeError as error:
        raise ValueError(f"expected values of the config's own types, got {dict(values)}: {error}") from error


def read_config(workdir: Path) -> ConfigDict:
    """The config that an identity run was started with.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its config can't be read, or it trained something else.
    """
    stored = workdir / CONFIG
    if workdir.is_file():
        config = ConfigDict(read_adapter_config(workdir))
    elif stored.is_file():
        config = ConfigDict(read_json(stored))
    else:
        raise FileNotFoundError(
            f"expected the folder of a run, with config.json, at {workdir}, found none; give the --workdir of a training"
        )
    if config.get("task") != IDENTITY:
        raise ValueError(
            f"expected the run of an identity adapter at {workdir}, got a run of the task {config.get('task')!r}"
        )
    if missing := [key for key in ("world", "base", "mapper", "sampling", "evaluation") if key not in config]:
        raise ValueError(
            f"expected a run of this version at {workdir}, got one of an earlier version, whose config has no "
            f"config.{missing[0]}; train it again"
        )
    sampling = config.sampling
    if isinstance(sampling, ConfigDict) and "identity_start" not in sampling:  # a run from before there was one
        sampling.identity_start = 0.0
    return config


def run_facts(step: int, seconds: float, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What is written down with results: length and time of the training, versions, content hashes of the base."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {
        "num_steps": step, "seconds_training": seconds, "versions": versions, "fingerprints": dict(fingerprints)
    }  # fmt: skip


def _check_parameters(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    saved, asked = ({path: tuple(x.shape) for path, x in flatten(tree).items()} for tree in (stored, expected))
    if different := sorted(path for path in saved.keys() | asked.keys() if saved.get(path) != asked.get(path)):
        raise ValueError(
            f"expected the parameters that the config trains, got differences at {listing(different)}; open the run with "
            "its own config"
        )


def _check_base(workdir: Path, trained_on: Mapping[str, str], found: Mapping[str, str]) -> None:
    if dict(trained_on) != dict(found):
        raise ValueError(
            f"expected the base model that {workdir} was trained on ({trained_on}), got {dict(found)}; point to the right "
            "one (--base_path of launch.evaluate)"
        )
