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

CONFIG, COMPLETE, CHECKPOINTS, EVENTS = "config.json", "complete.json", "checkpoints", "tensorboard"
# Keys that may change between the parts of an interrupted run, because they do not change what is computed: how long and
# how often, on which devices, what is drawn, and where files lie (base weights are compared by content).
FREE_KEYS = re.compile(
    r"(log|validate|checkpoint)_every_steps|num_checkpoints|max_seconds|num_workers|profile_steps|mesh\..*|sampling\..*|"
    r"evaluation\..*|base\.(path|variant)|data\.(path|cache)"
)
_LEFT_OVER = re.compile(rf"\.lock|{re.escape(CONFIG)}\.tmp\d*")  # by a start that was killed


class Workdir:
    """The folder of one run. Process 0 looks and writes; all processes get its verdict.

    Args:
        path: of the folder, which need not exist.
        config: of the run.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path, self.config = Path(path), json.loads(config.to_json_best_effort())
        self._lock = filelock.FileLock(self.path / ".lock", timeout=0)

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
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise ValueError(
                f"expected {self.path} to be free, got a training run that is under way there; wait for it, or choose "
                "another --workdir"
            ) from None

    def release(self) -> None:
        """Lets other programs in."""
        self._lock.release(force=True)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file in one piece."""
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def _check(path: Path, config: Mapping[str, Any]) -> bool:
    stored = path / CONFIG
    if stored.is_file():
        if found := _differences(json.loads(stored.read_text(encoding="utf-8")), config):
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
    return (path / COMPLETE).is_file()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b and not FREE_KEYS.fullmatch(prefix + name):
            found.append(f"{prefix}{name} ({a!r} -> {b!r})")
    return found
