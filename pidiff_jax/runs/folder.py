"""The folder of a run: free, or of the same run; one program at a time trains there."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.strict_json import parse_json

CONFIG, COMPLETE, CHECKPOINTS, EVENTS = "config.json", "complete.json", "checkpoints", "tensorboard"
# Keys that may change between the parts of an interrupted run, because they do not change what is computed: how often, on
# which devices, what is drawn, and where files lie (base weights are compared by content). Beside them how long it takes: each
# part has its own max_seconds to decay in, and num_steps may be raised, also when the run has ended: from its last checkpoint
# on, schedules are those of the longer run.
FREE_KEYS = re.compile(
    r"(log|validate|checkpoint)_every_steps|num_checkpoints|max_seconds|num_workers|profile_steps|mesh\..*|sampling\..*|"
    r"evaluation\..*|base\.(path|variant)|data\.(path|cache)"
)
LEASE = ".lease"
_LEFT_OVER = re.compile(rf"\.lock|{re.escape(LEASE)}.*|{re.escape(CONFIG)}\.tmp\d*")  # by a start that was killed
# A program that shows no sign of life for so long has lost its folder; it shows one every third of this.
LEASE_SECONDS = 60.0
_WAIT_SECONDS = LEASE_SECONDS + 5.0


class Workdir:
    """The folder of one run. Process 0 looks and writes; all processes get its verdict.

    Args:
        path: of the folder, which need not exist.
        config: of the run.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path, self.config = Path(path), json.loads(config.to_json_best_effort())
        self._lease = filelock.SoftFileLease(self.path / LEASE, lease_duration=LEASE_SECONDS)

    def check(self) -> bool:
        """Checks that the folder is free or belongs to the same config; returns whether the run is complete.

        Raises:
            ValueError: it holds another run, or files that are no run, or can't be written, or another program trains there.
        """
        verdict, problem = 0, None
        if jax.process_index() == 0:
            try:
                verdict = int(_check(self.path, self.config))
                if verdict == 0 and self.path.exists():
                    self._acquire()
            except ValueError as error:
                verdict, problem = 2, error
        if jax.process_count() > 1:
            verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
        if verdict == 2:
            raise problem or ValueError("expected a folder that process 0 can use, got a refusal; see its message")
        return verdict == 1

    def claim(self) -> None:
        """Makes the folder, writes the config and keeps other programs out until `release`."""
        if jax.process_index() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self.write(CONFIG, self.config)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("workdir")

    def _acquire(self) -> None:
        """Takes the folder by a lease, which another program can take over once it shows no sign of life.

        A lock of the file system won't do: some have none, some keep out the same host only, and where it is a file, it stays
        when its holder is killed.
        """
        if self._lease.is_locked:
            return
        try:
            self._lease.acquire(timeout=1.0)  # time enough to take over from a dead process of this host
        except filelock.Timeout:
            print(f"waiting up to {_WAIT_SECONDS:.0f} s to see whether {self._owner()} is still at work", flush=True)
            try:
                self._lease.acquire(timeout=_WAIT_SECONDS)
            except filelock.Timeout:
                raise ValueError(
                    f"expected {self.path} to be free, got a training run that is under way there ({self._owner()}); wait for "
                    f"it, or choose another --workdir, or, if it is certain that this process is gone, remove "
                    f"{self.path / LEASE}"
                ) from None

    def _owner(self) -> str:
        owner = self._lease.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else f"the program that wrote {self.path / LEASE}"

    def check_lease(self) -> None:
        """Checks that no other program has taken the folder over, as one may after this one has stood still for a minute.

        Raises:
            OSError: one has; this program must write nothing more there.
        """
        if self._lease.is_locked and self._lease.owner is not None and not self._lease.is_lock_held_by_us:
            raise OSError(
                f"expected {self.path} to be this program's, got {self._owner()}, which took it over while this one stood "
                "still; leave it to that one"
            )

    def release(self) -> None:
        """Lets other programs in."""
        self._lease.release(force=True)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file in one piece."""
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def _check(path: Path, config: Mapping[str, Any]) -> bool:
    stored = path / CONFIG
    if stored.is_file():
        if found := _differences(read_json(stored), config):
            raise ValueError(
                f"expected the config that {path} was started with, got other values for {', '.join(found)}; "
                "choose another --workdir, or the same config to resume"
            )
    elif path.exists() and (not path.is_dir() or not all(_LEFT_OVER.fullmatch(file.name) for file in path.iterdir())):
        raise ValueError(
            f"expected an empty folder or one of an earlier run at {path}, got other files; choose another --workdir"
        )
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"expected a folder that can be written at {path}, got {there}; choose another --workdir")
    return _is_complete(path, config["num_steps"])


def _is_complete(path: Path, num_steps: int) -> bool:
    """Whether the run has ended, and is not asked for more steps than it has made."""
    return (path / COMPLETE).is_file() and read_json(path / COMPLETE).get("num_steps", 0) >= num_steps


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got a damaged file ({error}); restore it, or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got a {type(content).__name__}; restore it, or remove it")
    return content


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b and not FREE_KEYS.fullmatch(prefix + name) and not _longer(prefix + name, a, b):
            found.append(f"{prefix}{name} ({a!r} -> {b!r})")
    return found


def _longer(name: str, old: Any, new: Any) -> bool:
    return name == "num_steps" and isinstance(old, int) and isinstance(new, int) and old < new
