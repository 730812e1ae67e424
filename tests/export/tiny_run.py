"""Folders of runs that nobody trained: the quickstart's, with an adapter of any form and parameters at random."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import quickstart
from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.export.export import trained_paths
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.runs.build import build_adapter
from pidiff_jax.worlds import open_world

# Name -> variant, sink, and what of the mapper is as in no other. Groups are of W+'s ten layers.
FOUR = ((0, 2), (2, 4), (4, 6), (6, 10))
LAYERS = tuple((layer, layer + 1) for layer in range(10))
FORMS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "linear": ("decoupled", False, {"groups": FOUR, "tokens_per_group": 1}),
    "linear, sink": ("decoupled", True, {"groups": LAYERS, "tokens_per_group": 4}),
    "mlp": ("decoupled", False, {"groups": LAYERS, "tokens_per_group": 1, "kind": "mlp", "hidden_width": 16}),
    "mlp, sink": ("decoupled", True, {"groups": FOUR, "tokens_per_group": 2, "kind": "mlp", "hidden_width": 16}),
    "residual": ("residual", False, {"groups": FOUR, "tokens_per_group": 1}),
    "residual, sink, mlp": ("residual", True, {"groups": FOUR, "tokens_per_group": 2, "kind": "mlp", "hidden_width": 16}),
    "independent": ("independent", False, {"groups": FOUR, "tokens_per_group": 1}),
    "independent, sink": ("independent", True, {"groups": LAYERS, "tokens_per_group": 4}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _State:
    step: Any
    trainable: Any
    ema: Any
    opt_state: Any = dataclasses.field(default_factory=dict)


def tiny_config(form: str, **changes: Any) -> ConfigDict:
    """The config of a run of one of `FORMS`."""
    variant, sink, mapper = FORMS[form]
    config = quickstart.get_config()
    config.identity.update({"variant": variant, "sink": sink})
    config.mapper.update(mapper)
    config.sampling.num_steps = 3
    config.sampling.identity_scale = 0.8
    config.sampling.identity_start = 0.4
    if not sink:  # its LayerNorm's bias is trained
        config.parameter_rules = config.parameter_rules[1:]
    config.update(changes)
    return config


def make_run(folder: Path, form: str, **changes: Any) -> Path:
    """`save_run` of one of `FORMS`."""
    return save_run(folder, tiny_config(form, **changes))


def save_run(folder: Path, config: ConfigDict) -> Path:
    """A run's folder with one checkpoint, of step 7. What was trained is near its start; the average isn't the same."""
    experiment = build_adapter(config, open_world(config))
    weights, rng = experiment.load(), np.random.default_rng(3)
    flat = flatten(weights.params)
    trained = {
        path: np.asarray(flat[path]) + 0.02 * rng.standard_normal(flat[path].shape).astype(np.float32)
        for path in trained_paths(experiment)
    }
    other = {path: leaf + 1 for path, leaf in trained.items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort(), encoding="utf-8")
    stored = json.loads(config.to_json_best_effort())
    with CheckpointManager(
        folder / "checkpoints", config=stored, frozen=weights.fingerprints, save_every_steps=1
    ) as manager:
        manager.save(_State(np.int32(7), unflatten(other), unflatten(trained)))
    return folder
