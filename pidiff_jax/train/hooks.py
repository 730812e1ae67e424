"""What happens now and then during training: logs, validation, pictures, checkpoints."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.optim.rules import merge
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train.loop import Run
from pidiff_jax.train.step import compile_evaluate_losses

Preview = Callable[[Mapping[str, Any]], tuple[dict[str, np.ndarray], dict[str, float]]]


class MetricsLog:
    """Writes scalars to TensorBoard events and to `history.jsonl`, one line per report; only in process 0.

    Every report of the training has `seconds`, the time spent so far, that of earlier, interrupted parts included.
    started: `time.perf_counter()` at the start of the program.
    """

    def __init__(self, workdir: Path, started: float):
        self.started = started
        self.active = jax.process_index() == 0
        self.path = workdir / "history.jsonl"
        if self.active:
            _drop_half_line(self.path)
        self.writer = SummaryWriter(str(workdir / "tensorboard")) if self.active else None
        self.seconds_before = max((entry.get("seconds", 0.0) for entry in self.history()), default=0.0)

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None, is_last: bool) -> None:
        if metrics is not None:
            self.write(step, {**metrics, "seconds": self.seconds()})

    def seconds(self) -> float:
        """Wall-clock time of this training so far, from the start of the program, in all its parts."""
        return self.seconds_before + time.perf_counter() - self.started

    def write(self, step: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray] | None = None) -> None:
        """Logs scalars and uint8 pictures (h, w, 3)."""
        if not self.active:
            return
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        for name, picture in (pictures or {}).items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def history(self) -> list[dict[str, float | int]]:
        """All reports so far; see `read_history`."""
        return read_history(self.path)


def read_history(path: Path) -> list[dict[str, float | int]]:
    """The reports of a run, those of its interrupted parts included, by step; the last report of a step wins."""
    merged: dict[int, dict[str, float | int]] = {}
    text = path.read_text() if path.is_file() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():  # without a last line that was cut off
        entry = json.loads(line)
        merged.setdefault(entry["step"], {}).update(entry)
    return [merged[step] for step in sorted(merged)]


def _drop_half_line(path: Path) -> None:
    """Cuts off what a killed process left of its last line, so that the next line doesn't continue it."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


class Validation:
    """Mean losses on held-out data, with the averaged parameters, fixed examples and fixed noise."""

    def __init__(self, run: Run, log: MetricsLog, max_batches: int = 4):
        self.every_steps, self.log = run.settings.validate_every_steps, log
        self.batches = list(_validation_batches(run, max_batches))
        self.evaluate = None

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None, is_last: bool) -> None:
        if step % self.every_steps and not is_last:
            return
        if self.evaluate is None:
            e = run.experiment
            self.evaluate = compile_evaluate_losses(
                e.losses, e.loss_weights, run.average, run.frozen, self.batches[0], run.mesh
            )
        results = [
            self.evaluate(run.average, run.frozen, shard_batch(batch, run.mesh), jax.random.key(index))
            for index, batch in enumerate(self.batches)
        ]
        means = {f"validation/{name}": float(np.mean([r[name] for r in results])) for name in results[0]}
        self.log.write(step, means)


def _validation_batches(run: Run, max_batches: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of the first validation batches."""
    source, size = run.validation_source, run.settings.batch_size
    local = size // jax.process_count()
    for start in range(0, min(len(source) // size, max_batches) * size, size):
        first = start + jax.process_index() * local
        records = [source[index] for index in range(first, first + local)]
        yield {name: np.stack([r[name] for r in records]) for name in records[0]}


class Previews:
    """Draws pictures and scores of the present state: the answer to "is it learning the identity?"."""

    def __init__(self, every_steps: int, log: MetricsLog, preview: Preview):
        self.every_steps, self.log, self.preview = every_steps, log, preview

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None, is_last: bool) -> None:
        if step % self.every_steps == 0 and not is_last:
            pictures, scores = self.preview(merge(run.average, run.frozen))
            self.log.write(step, scores, pictures)


class Checkpoints:
    """Saves the state and the position in the data when a save is due."""

    def __init__(self, manager: CheckpointManager):
        self.manager = manager

    def __call__(self, run: Run, step: int, metrics: dict[str, float] | None, is_last: bool) -> None:
        if self.manager.should_save(step):
            self.manager.save(run.state, run.loader.get_state())
