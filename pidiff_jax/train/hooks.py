"""What happens now and then during training: validation, previews, checkpoints, profiling."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train.loop import TrainingRun, diverged
from pidiff_jax.train.termination import Terminated, postponed

Metrics = Mapping[str, float] | None
# Parameters -> pictures (h, w, 3) uint8 and scores, by name.
PreviewFn = Callable[[Mapping[str, Any]], tuple[Mapping[str, np.ndarray], Mapping[str, float]]]


@runtime_checkable
class WriteFn(Protocol):
    """Where hooks report to; `runs.history.HistoryHook.write` is one."""

    def __call__(
        self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Notes what was found after an update."""


class ValidationHook:
    """Mean losses on held-out data, with the averaged parameters, fixed examples and fixed noise."""

    def __init__(self, run: TrainingRun, write: WriteFn, max_batches: int = 4):
        self.every_steps, self.write = run.settings.validate_every_steps, write
        self.batches = list(_validation_batches(run, max_batches))
        self.evaluate: jax.stages.Compiled | None = None

    def __call__(self, run: TrainingRun, step: int, metrics: Metrics, is_last: bool) -> None:
        if step % self.every_steps and not is_last:
            return
        if self.evaluate is None:
            self.evaluate = run.plan.compile_validation(run.validation_source[0])
        results = [
            self.evaluate(run.average, run.frozen, shard_batch(batch, run.mesh), jax.random.key(index))
            for index, batch in enumerate(self.batches)
        ]
        self.write(step, {f"validation/{name}": float(np.mean([r[name] for r in results])) for name in results[0]})


def _validation_batches(run: TrainingRun, max_batches: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of the first validation batches."""
    source, size = run.validation_source, run.settings.batch_size
    local = size // jax.process_count()
    for start in range(0, min(len(source) // size, max_batches) * size, size):
        first = start + jax.process_index() * local
        records = [source[index] for index in range(first, first + local)]
        yield {name: np.stack([r[name] for r in records]) for name in records[0]}


class PreviewHook:
    """Draws pictures and scores of the present state: the answer to "is it learning the identity?"."""

    def __init__(self, every_steps: int, write: WriteFn, make_preview: Callable[[], PreviewFn]):
        self.every_steps, self.write, self.make_preview = every_steps, write, make_preview
        self.preview: PreviewFn | None = None

    def __call__(self, run: TrainingRun, step: int, metrics: Metrics, is_last: bool) -> None:
        if step % self.every_steps == 0 and not is_last:
            if self.preview is None:  # not at the start: making its people takes seconds
                self.preview = self.make_preview()
            pictures, scores = self.preview(run.params)
            self.write(step, scores, pictures)


class CheckpointHook:
    """Saves the state and the position in the data when a save is due, also when the machines are about to go away.

    Args:
        manager: writes the checkpoints.
        check: called before a save; what it raises keeps the state from being saved.

    Raises:
        FloatingPointError: the state isn't finite; then it isn't saved.
        Terminated: several processes were told to end, in the same update.
    """

    def __init__(self, manager: CheckpointManager, check: Callable[[], None]):
        self.manager, self.check = manager, check

    def __call__(self, run: TrainingRun, step: int, metrics: Metrics, is_last: bool) -> None:
        if jax.process_count() > 1 and self.manager.reached_preemption(step):
            raise Terminated
        if is_last or self.manager.should_save(step):
            self.save(run)

    def save(self, run: TrainingRun) -> None:
        """Saves now."""
        self.check()
        if not bool(_all_finite(run.state)):
            raise diverged("a state with NaN or infinity", run.step)
        with postponed():  # half a save can't be begun again
            self.manager.save(run.state, run.data_state)


@jax.jit
def _all_finite(state: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]).all()


class ProfileHook:
    """Watches some updates with JAX's profiler; TensorBoard shows the trace in its "Profile" tab.

    first_step, last_step: the updates to watch, counted from 1.
    folder: of TensorBoard's events.
    """

    def __init__(self, first_step: int, last_step: int, folder: Path):
        self.first_step, self.last_step, self.folder = first_step, last_step, folder
        self.watching = False

    def start_if_due(self, next_step: int, is_last: bool = False) -> None:
        """Starts before update `next_step`; also called before the first update of a program."""
        if not self.watching and not is_last and self.first_step <= next_step <= self.last_step:
            jax.profiler.start_trace(str(self.folder))
            self.watching = True

    def __call__(self, run: TrainingRun, step: int, metrics: Metrics, is_last: bool) -> None:
        if self.watching and (step >= self.last_step or is_last):
            jax.block_until_ready(run.state)
            jax.profiler.stop_trace()
            self.watching = False
        self.start_if_due(step + 1, is_last)
