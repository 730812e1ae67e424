"""The training loop: it only puts together what others do. Batches in, hooks called, checkpoints out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
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
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"expected config.clip_norm above 0, or None for no clipping, got {self.clip_norm}; correct it"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"expected config.ema_decay in [0, 1), or None for no average, got {self.ema_decay}; correct it"
            )
        if self.batch_size % jax.process_count():
            raise ValueError(
                f"expected a config.batch_size that {jax.process_count()} processes can share, got {self.batch_size}; "
                "choose a multiple"
            )


class Run:
    """A training that has been set up: parameters placed on the mesh, data opened.

    Its `experiment` has no parameters any more: the host's copy of a large base is not kept beside the placed one.
    """

    def __init__(self, experiment: Experiment, settings: LoopSettings):
        self.experiment, self.settings = replace(experiment, params={}), settings
        self.mesh = make_mesh(settings.mesh)
        parts = partition(experiment, self.mesh)
        self.params_table = parts.table
        self.optimizer = make_optimizer(parts.groups, experiment.groups, settings.num_steps, settings.clip_norm)
        self.frozen = place(parts.frozen, parts.frozen_shardings, experiment.frozen_dtype)
        self.state = init_state(
            place(parts.trainable, parts.trainable_shardings),
            self.optimizer,
            ema=settings.ema_decay is not None,
            shardings=parts.trainable_shardings,
        )
        self.train_source, self.validation_source = experiment.train_source(), experiment.validation_source()
        if len(self.validation_source) < settings.batch_size:
            raise ValueError(
                f"expected at least one batch ({settings.batch_size}) of validation records, got "
                f"{len(self.validation_source)}; add records or lower config.batch_size"
            )
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

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None, is_last: bool) -> None:
        """Called after every update.

        metrics: given every `log_every_steps`, before a checkpoint and at the end.
        is_last: no update follows, because all steps are done or the time is over.
        """


def train(run: Run, hooks: Sequence[Hook], started: float) -> dict[str, float]:
    """Trains from the run's present step to the last one; returns the last metrics.

    `started` is `time.perf_counter()` at the start of the program: `max_seconds` counts from there.
    """
    settings = run.settings
    train_step = run.compile()
    batches: Iterator[dict] = iter(run.loader)
    last: dict[str, float] = {}
    step, is_last = run.step, run.step >= settings.num_steps
    metrics: dict[str, jax.Array] = {}
    with _progress_bar(settings.num_steps, step) as bar:
        while not is_last:
            jax.block_until_ready(metrics)  # at most one step ahead of the device: honest rates, bounded memory
            run.state, metrics = train_step(run.state, run.frozen, shard_batch(next(batches), run.mesh))
            step += 1
            bar.update()
            # Also before a checkpoint, so that none is written of a training that has diverged.
            cadences = (settings.log_every_steps, settings.checkpoint_every_steps)
            report = any(step % every == 0 for every in cadences)
            is_last = step == settings.num_steps or _out_of_time(settings, started, report)
            if report or is_last:
                last = {name: float(value) for name, value in metrics.items()}
                _check_finite(last, step)
                bar.set_postfix_str(_short(last))
            for hook in hooks:
                hook(run, step, last if report or is_last else None, is_last)
    return last


def _progress_bar(total: int, initial: int) -> tqdm:
    quiet = jax.process_index() != 0
    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, smoothing=0.1, disable=quiet)


def _out_of_time(settings: LoopSettings, started: float, report: bool) -> bool:
    """Whether `max_seconds` are over. Several processes stop together: they ask process 0, at reports only."""
    if settings.max_seconds is None:
        return False
    over = time.perf_counter() - started > settings.max_seconds
    if jax.process_count() == 1:
        return over
    return report and bool(multihost_utils.broadcast_one_to_all(np.bool_(over)))


def _check_finite(metrics: dict[str, float], step: int) -> None:
    """The loss is that of the parameters before the update, their norms are of those after it: both must be sound."""
    wrong = {n: v for n, v in metrics.items() if (n == "loss" or n.startswith("param_norm/")) and not np.isfinite(v)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise FloatingPointError(
            f"expected a finite loss and finite parameters, got {name} = {value} at step {step}; start in a new --workdir "
            "with a lower learning rate, and check the data"
        )


def _short(metrics: dict[str, float]) -> str:
    names = [n for n in metrics if n == "loss" or not n.startswith(("loss/", "grad_", "param_", "learning_"))]
    return " ".join(f"{name}={metrics[name]:.4g}" for name in sorted(names, key=lambda n: n != "loss"))
