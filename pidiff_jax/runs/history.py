"""The history of a run: `history.jsonl`, one line a report, and TensorBoard's events beside it."""

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from pidiff_jax.runs.folder import EVENTS
from pidiff_jax.train.loop import TrainingRun

Report = dict[str, float | int]
HISTORY = "history.jsonl"


class HistoryHook:
    """Notes the metrics of a run and what else is found on the way; only process 0 writes.

    Every report of the training has `seconds`, the time spent so far, that of earlier, interrupted parts included.
    started: `time.perf_counter()` at the start of the program.
    """

    def __init__(self, workdir: Path, started: float):
        self.started = started
        self.active = jax.process_index() == 0
        self.path = workdir / HISTORY
        if self.active:
            _drop_half_line(self.path)
        self.writer = SummaryWriter(str(workdir / EVENTS)) if self.active else None
        self.seconds_before = seconds_spent(self.reports())

    def __call__(self, run: TrainingRun, step: int, metrics: Mapping[str, float] | None, is_last: bool) -> None:
        if metrics is not None:
            self.write(step, {**metrics, "seconds": self.seconds()})

    def seconds(self) -> float:
        """Wall-clock time of this training so far, from the start of the program, in all its parts."""
        return self.seconds_before + time.perf_counter() - self.started

    def write(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, np.ndarray] | None = None) -> None:
        """Notes scalars and uint8 pictures (h, w, 3)."""
        if self.writer is None:
            return
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        for name, picture in (pictures or {}).items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")

    def reports(self) -> list[Report]:
        """All reports so far; see `read_history`."""
        return read_history(self.path.parent)


def read_history(workdir: Path) -> list[Report]:
    """The reports of a run, those of its interrupted parts included, by step; the last report of a step wins.

    Warns of lines that are damaged, and leaves them out.
    """
    merged: dict[int, Report] = {}
    path = workdir / HISTORY
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole_lines = text.split("\n")[:-1]  # what follows the last line feed was cut off, or is nothing
    for number, line in enumerate(whole_lines, start=1):
        try:
            entry = json.loads(line)
            merged.setdefault(entry["step"], {}).update(entry)
        except (ValueError, TypeError, KeyError):
            warnings.warn(f"{path}, line {number} is damaged and left out", stacklevel=2)
    return [merged[step] for step in sorted(merged)]


def seconds_spent(reports: list[Report], until_step: int | None = None) -> float:
    """Wall-clock time of the training until a step (None: the last)."""
    counted = [r for r in reports if until_step is None or r["step"] <= until_step]
    return max((report.get("seconds", 0.0) for report in counted), default=0.0)


def _drop_half_line(path: Path) -> None:
    """Cuts off what a killed process left of its last line, so that the next line doesn't continue it."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
