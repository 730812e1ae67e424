"""The training loop: it only puts together what others do. Batches in, hooks called, checkpoints out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from data_pipeline.loader import make_loader
from pidiff_jax.optim.groups import make_optimizer
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import place, shard_batch
from pidiff_jax.train.experiment import Experiment, partition
from pidiff_jax.train.state import TrainState, init_state
from pidiff_jax.train.step import compile_train_step, make_train_step


@dataclass(frozen=True)
class LoopSettings:
    """Length, cadence and reproducibility of a run.

    num_checkpoints: how many of the latest checkpoints are kept.
    max_seconds: stop and save after this much wall-clock time of this process, compilation included; None never.
    """

    num_steps: int
    batch_size: int
    seed: int
    mesh: dict[str, int]
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    accumulate_steps: int = 1
    log_every_steps: int = 50
    validate_every_steps: int = 1000
    checkpoint_every_steps: int = 1000
    num_checkpoints: int = 2
    max_seconds: float | None = None

    def __post_init__(self):
        names = ("num_steps", "batch_size", "accumulate_steps", "log_every_steps", "validate_every_steps",
                 "checkpoint_every_steps", "num_checkpoints")  # fmt: skip
        if small := [name for name in names if getattr(self, name) < 1]:
            raise ValueError(
                f"expected config.{small[0]} of at least 1, got {getattr(self, small[0])}; correct the config"
            )


class Run:
    """A training that has been set up: parameters placed on the mesh, step compiled, data opened."""

    def __init__(self, experiment: Experiment, settings: LoopSettings):
        self.experiment, self.settings = experiment, settings
        self.mesh = make_mesh(settings.mesh)
        parts = partition(experiment, self.mesh)
        self.params_table = parts.table
        self.optimizer = make_optimizer(parts.groups, experiment.groups, settings.num_steps, settings.clip_norm)
        self.frozen = place(parts.frozen, parts.frozen_shardings)
        self.state = init_state(
            place(parts.trainable, parts.trainable_shardings),
            self.optimizer,
            ema=settings.ema_decay is not None,
            shardings=parts.trainable_shardings,
        )
        self.train_source = experiment.train_source()
        self.loader = make_loader(
            self.train_source,
            batch_size=settings.batch_size // jax.process_count(),
            seed=settings.seed,
            shuffle=True,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def compile(self) -> Callable[[TrainState, Any, dict], tuple[TrainState, dict]]:
        """Compiles the training step before the loop, so that a mistake shows at once."""
        e, s = self.experiment, self.settings
        step = make_train_step(
            e.losses,
            self.optimizer,
            loss_weights=e.loss_weights,
            ema_decay=s.ema_decay,
            seed=s.seed,
            accumulate_steps=s.accumulate_steps,
        )
        example = {
            name: np.stack([value] * (s.batch_size // jax.process_count()))
            for name, value in self.train_source[0].items()
        }
        return compile_train_step(step, self.state, self.frozen, example, self.mesh)

    @property
    def step(self) -> int:
        """Finished updates."""
        return int(self.state.step)

    @property
    def average(self) -> Any:
        """The trainable parameters to use: their moving average where one is kept."""
        return self.state.trainable if self.state.ema is None else self.state.ema


@runtime_checkable
class Hook(Protocol):
    """Something that happens now and then during training."""

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None) -> None:
        """Called after every update; `metrics` is given every `log_every_steps`, before a checkpoint and at the end."""


def train(run: Run, hooks: Sequence[Hook], started: float) -> dict[str, float]:
    """Trains from the run's present step to the last one; returns the last metrics.

    `started` is `time.perf_counter()` at the start of the program: `max_seconds` counts from there.
    """
    settings = run.settings
    train_step = run.compile()
    batches: Iterator[dict] = iter(run.loader)
    bar = tqdm(total=settings.num_steps, initial=run.step, unit="step", dynamic_ncols=True, smoothing=0.1)
    last: dict[str, float] = {}
    out_of_time = False
    step = run.step
    metrics: dict[str, jax.Array] = {}
    while step < settings.num_steps and not out_of_time:
        jax.block_until_ready(metrics)  # at most one step ahead of the device: honest rates, bounded memory
        run.state, metrics = train_step(run.state, run.frozen, shard_batch(next(batches), run.mesh))
        step += 1
        bar.update()
        out_of_time = settings.max_seconds is not None and time.perf_counter() - started > settings.max_seconds
        # Also before a checkpoint, so that none is ever written of a training that has diverged.
        cadences = (settings.log_every_steps, settings.checkpoint_every_steps)
        report = any(step % every == 0 for every in cadences) or step == settings.num_steps or out_of_time
        if report:
            last = {name: float(value) for name, value in metrics.items()}
            _check_finite(last, step)
            bar.set_postfix_str(_short(last))
        for hook in hooks:
            hook(run, step, last if report else None)
    bar.close()
    return last


def _check_finite(metrics: dict[str, float], step: int) -> None:
    if not np.isfinite(metrics["loss"]):
        raise FloatingPointError(
            f"expected a finite loss, got {metrics['loss']} at step {step}; lower the learning rate or check the data, "
            "then run again: it resumes from the last checkpoint"
        )


def _short(metrics: dict[str, float]) -> str:
    names = [n for n in metrics if n == "loss" or not n.startswith(("loss/", "grad_", "param_", "learning_"))]
    return " ".join(f"{name}={metrics[name]:.4g}" for name in sorted(names, key=lambda n: n != "loss"))
