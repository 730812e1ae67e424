"""From the config to an experiment; below this and its neighbours build_*.py, no code sees a config."""

import importlib
from typing import Any

from pidiff_jax.optim.groups import GroupSpec
from pidiff_jax.optim.rules import ParameterRule
from pidiff_jax.train.experiment import Experiment
from pidiff_jax.train.loop import LoopSettings

# Task -> module and function; the module is imported when its task is asked for.
BUILDERS = {
    "autoencoder": ("build_portraits", "build_autoencoder"),
    "text_to_image": ("build_portraits", "build_text_to_image"),
    "wplus": ("build_portraits_faces", "build_wplus"),
    "recogniser": ("build_portraits_faces", "build_recogniser"),
    "scenes": ("build_portraits_faces", "build_scenes"),
    "segmenter": ("build_portraits_faces", "build_segmenter"),
    "identity": ("build_identity", "build_identity"),
}


def build_experiment(config: Any) -> Experiment:
    """Makes models, data and losses of the config's task.

    Raises:
        ValueError, FileNotFoundError: the config asks for something that does not exist; says what and where.
    """
    if config.task not in BUILDERS:
        raise ValueError(f"expected config.task of {sorted(BUILDERS)}, got {config.task!r}; correct the config")
    # First what is checked at once; loading the base may take minutes.
    settings = {
        "loss_weights": {name: float(weight) for name, weight in config.losses.items()},
        "rules": [ParameterRule(pattern, group) for pattern, group in config.parameter_rules],
        "groups": {name: GroupSpec(**group) for name, group in config.groups.items()},
    }
    loop_settings(config)
    module, function = BUILDERS[config.task]
    parts = getattr(importlib.import_module(f"pidiff_jax.train.{module}"), function)(config)
    return Experiment(name=config.task, **settings, **parts)


def loop_settings(config: Any) -> LoopSettings:
    """Length and cadence of the run."""
    return LoopSettings(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        mesh=dict(config.mesh),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        accumulate_steps=config.accumulate_steps,
        log_every_steps=config.log_every_steps,
        validate_every_steps=config.validate_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
        num_checkpoints=config.num_checkpoints,
        max_seconds=config.get("max_seconds"),
    )
