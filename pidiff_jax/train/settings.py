"""Length, cadence and reproducibility of a training run, apart from what is trained."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know.

    mesh: axis -> size, see `sharding.mesh.make_mesh`.
    num_checkpoints: how many of the latest checkpoints are kept.
    max_seconds: stop and save after this much wall-clock time of this process, compilation included; None never.
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
    profile_steps: tuple[int, ...] | None = None

    def __post_init__(self):
        names = ("num_steps", "batch_size", "accumulate_steps", "log_every_steps", "validate_every_steps",
                 "checkpoint_every_steps", "num_checkpoints")  # fmt: skip
        if small := [name for name in names if getattr(self, name) < 1]:
            raise ValueError(
                f"expected config.{small[0]} of at least 1, got {getattr(self, small[0])}; correct the config"
            )
        if self.num_workers < 0:
            raise ValueError(f"expected config.num_workers of at least 0, got {self.num_workers}; correct the config")
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
        _check_profile_steps(self.profile_steps, self.num_steps)


def _check_profile_steps(steps: tuple[int, ...] | None, num_steps: int) -> None:
    if steps is None:
        return
    whole = len(steps) == 2 and all(isinstance(step, int) for step in steps)
    if not whole or not 1 <= steps[0] <= steps[1] <= num_steps:
        raise ValueError(
            f"expected config.profile_steps like (11, 15), the first and the last of the {num_steps} updates to watch, or "
            f"None, got {steps}; correct it"
        )
