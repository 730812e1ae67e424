"""`max_seconds`: when a run stops for it, and how far its learning rates have decayed by then."""

from time import perf_counter

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pidiff_jax.sharding.rules import from_first_process
from pidiff_jax.train.settings import LoopSettings


class TimeLimit:
    """The time that is left to a program when its first update begins; process 0's clock is that of all.

    Args:
        settings: of the run.
        started: `time.perf_counter()` at the start of the program: `max_seconds` counts from there.
        first_step: updates that were finished before.
        mesh: where due steps are needed.
    """

    def __init__(self, settings: LoopSettings, started: float, first_step: int, mesh: Mesh):
        self.max_seconds, self.num_steps = settings.max_seconds, settings.num_steps
        self.started, self.first_step, self.mesh = started, first_step, mesh
        self.begun: float | None = None  # seconds at the first update
        self.no_step_due = from_first_process(0.0, mesh)

    def due_step(self) -> jax.Array:
        """The step whose decay is due by now, a float32 scalar on the mesh, for `optim.schedules.Schedule`; 0 without a limit.

        Asked before every update; it goes evenly from `first_step` to `num_steps` while the time goes from the first
        update to the limit. So a run that is even and fast enough is never behind it, and is the same as without a limit,
        however long it took to start.
        """
        if self.max_seconds is None:
            return self.no_step_due
        seconds = self._seconds()
        if self.begun is None:
            self.begun = seconds
        left = max(self.max_seconds - self.begun, 1e-9)  # where none is, the first update is made all the same
        passed = min((seconds - self.begun) / left, 1.0)
        return from_first_process(self.first_step + (self.num_steps - self.first_step) * passed, self.mesh)

    def is_over(self, report: bool) -> bool:
        """Whether the run stops now. Several processes stop together: they ask process 0, at reports only."""
        if self.max_seconds is None:
            return False
        over = self._seconds() > self.max_seconds
        if jax.process_count() == 1:
            return over
        return report and bool(multihost_utils.broadcast_one_to_all(np.bool_(over)))

    def _seconds(self) -> float:
        return perf_counter() - self.started
