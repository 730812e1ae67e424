"""The training loop: it only puts together what others do. Batches in, hooks called, checkpoints out."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from data_pipeline.loader import make_loader
from pidiff_jax.optim.rules import merge, split
from pidiff_jax.sharding.rules import place, shard_batch, shardings_of
from pidiff_jax.train.experiment import Weights
from pidiff_jax.train.plan import Plan
from pidiff_jax.train.state import init_state
from pidiff_jax.train.termination import postponed
from pidiff_jax.train.time_limit import TimeLimit


class TrainingRun:
    """A plan with its arrays placed on the mesh and its data opened; what changes are `state` and `data_state`.

    data_state: the loader's position after the batches that the state has seen.
    """

    def __init__(self, plan: Plan, weights: Weights):
        self.plan, self.settings, self.mesh = plan, plan.settings, plan.mesh
        self.fingerprints = dict(weights.fingerprints)
        trainable, frozen = split(weights.params, plan.groups)
        self.frozen = place(frozen, shardings_of(plan.frozen), plan.experiment.frozen_dtype)
        self.state = init_state(
            place(trainable, shardings_of(plan.state.trainable)),
            plan.optimizer,
            ema=self.settings.ema_decay is not None,
            shardings=shardings_of(plan.state.trainable),
        )
        sources = plan.experiment.sources
        self.train_source, self.validation_source = sources.train(), sources.validation()
        if len(self.validation_source) < self.settings.batch_size:
            raise ValueError(
                f"expected at least one batch ({self.settings.batch_size}) of validation records, got "
                f"{len(self.validation_source)}; add records or lower config.batch_size"
            )
        self.loader = make_loader(
            self.train_source,
            batch_size=self.settings.batch_size // jax.process_count(),
            seed=self.settings.seed,
            shuffle=True,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.settings.num_workers,
        )
        self.data_state = self.loader.get_state()

    def resume(self, state: Any, data_state: bytes) -> None:
        """Goes on from a checkpoint's state and position in the data."""
        self.state, self.data_state = state, data_state
        self.loader.set_state(data_state)

    @property
    def step(self) -> int:
        """Finished updates."""
        return int(self.state.step)

    @property
    def average(self) -> Any:
        """The trainable parameters to use: their moving average where one is kept."""
        return self.state.trainable if self.state.ema is None else self.state.ema

    @property
    def params(self) -> dict[str, Any]:
        """The whole tree, the trainable part averaged."""
        return merge(self.average, self.frozen)


@runtime_checkable
class Hook(Protocol):
    """Something that happens now and then during training."""

    def __call__(self, run: TrainingRun, step: int, metrics: Mapping[str, float] | None, is_last: bool) -> None:
        """Called after every update.

        metrics: given every `log_every_steps`, before a checkpoint and at the end.
        is_last: no update follows, because all steps are done or the time is over.
        """


def train(run: TrainingRun, hooks: Sequence[Hook], started: float) -> None:
    """Trains from the run's present step to the last one; compiles nothing where all steps are done.

    While the device works on a step, the next batch is fetched and transferred.

    Args:
        run: its state is replaced after every step.
        hooks: called in this order after every update.
        started: `time.perf_counter()` at the start of the program: `max_seconds` counts from there.

    Raises:
        FloatingPointError: the loss or the parameters are no longer finite.
        Terminated: the program was told to end; the run is as after its last update.
    """
    settings, step = run.settings, run.step
    if step >= settings.num_steps:
        return
    train_step = run.plan.compile_step(run.train_source[0])  # before the loop, so that a mistake shows at once
    with _progress_bar(settings.num_steps, step) as bar:
        batch: dict[str, Any] | None = _next_batch(run)
        limit = TimeLimit(settings, started, step, run.mesh)
        is_last = False
        while not is_last:
            # An array that wanders by itself would make every step wait; a signal in here would lose the donated state.
            with jax.transfer_guard("disallow"), postponed():
                run.state, metrics = train_step(run.state, run.frozen, batch, limit.due_step())
                step += 1
                run.data_state = run.loader.get_state()
                batch = _next_batch(run) if step < settings.num_steps else None
                jax.block_until_ready(metrics)  # at most one step ahead of the device: honest rates, bounded memory
            bar.update()
            # Also before a checkpoint, so that none is written of a run that has diverged.
            cadences = (settings.log_every_steps, settings.checkpoint_every_steps)
            report = any(step % every == 0 for every in cadences)
            is_last = step == settings.num_steps or limit.is_over(report)
            last = _on_host(metrics) if report or is_last else None
            if last is not None:
                _check_finite(last, step)
                bar.set_postfix_str(_short(last))
            for hook in hooks:
                hook(run, step, last, is_last)


def _next_batch(run: TrainingRun) -> dict[str, Any]:
    return shard_batch(next(run.loader), run.mesh)


def _on_host(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _progress_bar(total: int, initial: int) -> tqdm:
    quiet = jax.process_index() != 0
    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, smoothing=0.1, disable=quiet)


def _check_finite(metrics: Mapping[str, float], step: int) -> None:
    """The loss is that of the parameters before the update, their norms are of those after it: both must be sound."""
    wrong = {n: v for n, v in metrics.items() if (n == "loss" or n.startswith("param_norm/")) and not np.isfinite(v)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise diverged(f"{name} = {value}", step)


def diverged(what: str, step: int) -> FloatingPointError:
    """The error of a run that can't go on."""
    return FloatingPointError(
        f"expected a finite loss and finite parameters, got {what} at step {step}; start in a new --workdir with a lower "
        "learning rate, and check the data"
    )


def _short(metrics: Mapping[str, float]) -> str:
    names = [n for n in metrics if n == "loss" or not n.startswith(("loss/", "grad_", "param_", "learning_"))]
    return " ".join(f"{name}={metrics[name]:.4g}" for name in sorted(names, key=lambda n: n != "loss"))
