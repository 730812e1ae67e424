"""Length, cadence and reproducibility of a training run, apart from what is trained."""

from dataclasses import dataclass
from typing import Any

import jax

from pidiff_jax.ranges import MAX_SEED, check_count, check_number

_MAX_WORKERS = 1_024


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know.

    mesh: axis -> size, see `sharding.mesh.make_mesh`.
    num_checkpoints: how many of the latest checkpoints are kept.
    max_seconds: stop and save after this much wall-clock time of this process, compilation included, with learning rates
        that have decayed by then; None never.
    num_workers: processes that read data; 0 reads in threads of the training process.
    profile_steps: (first, last) update that the profiler watches, counted from 1; None watches none.

    Raises:
        ValueError: a number out of its range; names the config's key.
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
    num_workers: int = 0
    profile_steps: tuple[Any, ...] | None = None

    def __post_init__(self):
        check_count("config.seed", self.seed, least=0, most=MAX_SEED)
        names = ("num_steps", "batch_size", "accumulate_steps", "log_every_steps", "validate_every_steps",
                 "checkpoint_every_steps", "num_checkpoints")  # fmt: skip
        for name in names:
            check_count(f"config.{name}", getattr(self, name))
        check_count("config.num_workers", self.num_workers, least=0, most=_MAX_WORKERS)
        for axis, size in self.mesh.items():
            if size != -1:
                check_count(f"config.mesh.{axis}, or -1 for all devices that are left,", size)
        check_number("config.clip_norm", self.clip_norm, above=0, none_means="no clipping")
        check_number("config.ema_decay", self.ema_decay, least=0, below=1, none_means="no average")
        check_number("config.max_seconds", self.max_seconds, least=0, none_means="no limit")
        if self.batch_size % jax.process_count():
            raise ValueError(
                f"expected a config.batch_size that {jax.process_count()} processes can share, got {self.batch_size}; "
                "choose a multiple"
            )
        _check_profile_steps(self.profile_steps, self.num_steps)


def _check_profile_steps(steps: tuple[Any, ...] | None, num_steps: int) -> None:
    if steps is None:
        return
    whole = len(steps) == 2 and all(isinstance(step, int) for step in steps)
    if not whole or not 1 <= steps[0] <= steps[1] <= num_steps:
        raise ValueError(
            f"expected config.profile_steps like (11, 15), the first and the last of the {num_steps} updates to watch, or "
            f"None, got {steps}; correct it"
        )
