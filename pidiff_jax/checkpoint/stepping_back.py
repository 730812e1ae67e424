"""The newest checkpoint that can be read: damaged ones are stepped over, and said so."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")


class CheckpointMismatchError(ValueError):
    """The checkpoint is sound, but belongs to another model, optimizer or frozen base than this run."""


def read_newest(directory: Path, steps: Iterable[int], read: Callable[[int], T]) -> tuple[int, T, dict[int, str]]:
    """Reads the newest of the checkpoints whose files are whole.

    Args:
        directory: of the checkpoints, for errors.
        steps: of the complete checkpoints, in any order.
        read: reads the checkpoint of a step; whatever it raises, apart from a CheckpointMismatchError and what the machine
            refuses (memory, permission), means that files of it are damaged.

    Returns:
        The step, what `read` made of it, and for each newer step that was left out the reason.

    Raises:
        CheckpointMismatchError, MemoryError, PermissionError: of `read`, as it is.
        ValueError: none can be read; or, with several processes, which could step back differently, not the newest one.
    """
    failures: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            return step, read(step), failures
        except Exception as error:  # noqa: BLE001 (Orbax raises anything for damaged files)
            if isinstance(error, CheckpointMismatchError) or is_of_the_machine(error):
                raise
            failures[step] = damage(error)
            if jax.process_count() > 1:
                raise ValueError(
                    f"expected a readable checkpoint, got {directory / str(step)}: {failures[step]}; move it away to go on "
                    "with the one before"
                ) from error
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
    raise ValueError(f"expected a readable checkpoint in {directory}, got {reasons}; start in a new directory")


def is_of_the_machine(error: Exception) -> bool:
    """Whether a checkpoint can't be read for want of memory, open files or permission, and may be sound."""
    words = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")  # as TensorStore and XLA say it
    return isinstance(error, MemoryError | PermissionError) or any(word in str(error) for word in words)


def damage(error: Exception) -> str:
    """What is wrong with a checkpoint, short and in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
