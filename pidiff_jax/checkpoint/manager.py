"""Checkpoints of a run: what is trained, its optimizer and average, the position in the data, and what it was made with.

One directory per step with the items `trainable`, `ema`, `optimizer` (arrays), `data` and `metadata` (JSON). Orbax commits
it when everything is on disk, so an interruption leaves the previous checkpoint as the newest.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from pidiff_jax.checkpoint import data_state as data_states
from pidiff_jax.checkpoint.stepping_back import CheckpointMismatchError, read_newest
from pidiff_jax.paths import flatten, leaves_by_path, unflatten

ARRAY_ITEMS = ("trainable", "ema", "optimizer")
JSON_ITEMS = ("data", "metadata")
RECORDED_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@runtime_checkable
class State(Protocol):
    """The checkpointed state: a dataclass with at least these fields; `train.state.TrainState` is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    step: Any
    trainable: Any
    opt_state: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore_latest` found; data_state is None if none was saved, metadata has the config it was saved with."""

    step: int
    state: Any
    data_state: Any
    metadata: dict[str, Any]


class CheckpointManager:
    """Saves and restores the checkpoints of one run; a context manager that waits for the last save.

    Args:
        directory: holds nothing but this run's checkpoints; made if it doesn't exist.
        config: JSON-compatible; recorded.
        frozen: name -> `fingerprint` of each frozen source; a run resumes only with the same ones.
        save_every_steps: cadence of `should_save`.
        keep_last: how many of the newest checkpoints are kept.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        config: Mapping[str, Any],
        frozen: Mapping[str, str],
        save_every_steps: int,
        keep_last: int = 3,
    ) -> None:
        if save_every_steps < 1 or keep_last < 1:
            raise ValueError(
                f"expected save_every_steps and keep_last of at least 1, got {save_every_steps} and {keep_last}; correct "
                "the config"
            )
        self._directory = Path(directory).absolute()
        self._config, self._frozen, self._save_every_steps = dict(config), dict(frozen), save_every_steps
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep_last),
            cleanup_tmp_directories=True,
            save_root_metadata=False,
        )
        arrays = {name: ocp.StandardCheckpointHandler() for name in ARRAY_ITEMS}
        texts = {name: ocp.JsonCheckpointHandler() for name in JSON_ITEMS}
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=arrays | texts)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def should_save(self, step: int) -> bool:
        """Whether a save is due: every `save_every_steps`."""
        return step > 0 and step % self._save_every_steps == 0

    def reached_preemption(self, step: int) -> bool:
        """Whether, with several processes, their machines are about to be taken away, and this is the step to save at."""
        return self._manager.reached_preemption(step)

    def save(self, state: State, data_state: Any = None) -> bool:
        """Starts saving and returns when `state` may be donated; the files are written in the background.

        data_state is the position of this process in the data: bytes or JSON-compatible, as Grain's `get_state` gives it.
        Returns False, and does nothing, if the checkpoint of this step exists.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        metadata = {
            "config": self._config,
            "frozen": self._frozen,
            "layout": _layout(state),
            "versions": {name: version(name) for name in RECORDED_VERSIONS},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items["data"] = ocp.args.JsonSave({"processes": data_states.pack(data_state)})
        items["metadata"] = ocp.args.JsonSave(metadata)
        return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when every started save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and frees the threads."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, target: State) -> Restored | None:
        """Restores the newest readable checkpoint to the shardings of `target`, whose values are not used.

        Returns None if there is no checkpoint. A checkpoint with damaged files is left out with a warning and, once an
        older one has been restored, renamed to `damaged-<step>`; with several processes it is an error.

        Raises:
            CheckpointMismatchError: the checkpoint has other parameters or frozen weights than this run.
            ValueError: no checkpoint can be read, or another number of processes saved it.
        """
        steps = self.steps()
        if not steps:
            return None
        step, (metadata, data, state), failures = read_newest(
            self._directory, steps, lambda step: self._read(step, target)
        )
        self._set_aside(failures)
        return Restored(step, state, data_states.unpack(data), metadata)

    def _read(self, step: int, target: State) -> tuple[dict[str, Any], list[Any], Any]:
        texts = self._restore(step, **{name: ocp.args.JsonRestore() for name in JSON_ITEMS})
        metadata = texts["metadata"]
        self._check(step, "frozen weights", metadata["frozen"], self._frozen)
        self._check(step, "parameters", metadata["layout"], _layout(target))
        return metadata, texts["data"]["processes"], self._restore_state(step, target)

    def _restore(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _restore_state(self, step: int, target: State) -> Any:
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in _items(structs).items()}
        found = self._restore(step, **args)
        structure = jax.tree.structure(_optimizer_part(target))
        leaves = flatten(found["optimizer"])
        part = jax.tree.unflatten(structure, [leaves[path] for path in leaves_by_path(_optimizer_part(target))])
        ema = None if target.ema is None else found["ema"]
        return dataclasses.replace(
            target, step=part["step"], trainable=found["trainable"], opt_state=part["state"], ema=ema
        )

    def _check(self, step: int, what: str, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
        different = [
            f"{name} (checkpoint: {saved.get(name, 'absent')}, now: {now.get(name, 'absent')})"
            for name in sorted(saved.keys() | now.keys())
            if saved.get(name) != now.get(name)
        ]
        if different:
            more = f"; and {len(different) - 6} more" if len(different) > 6 else ""
            raise CheckpointMismatchError(
                f"expected to resume from {self._directory / str(step)} with its own {what}, got differences at "
                f"{'; '.join(different[:6])}{more}; use the config and weights that the run began with, or a new workdir"
            )

    def _set_aside(self, failures: Mapping[int, str]) -> None:
        for step, reason in failures.items():
            path, aside = self._directory / str(step), self._directory / f"damaged-{step}"
            if aside.exists():  # of the same step, before it was made again
                aside = next(p for n in itertools.count(2) if not (p := path.with_name(f"damaged-{step}-{n}")).exists())
            path.rename(aside)
            warnings.warn(f"the checkpoint {path} is damaged ({reason}); renamed to {aside.name}", stacklevel=3)
        if failures:
            self._manager.reload()


def _items(state: State) -> dict[str, Any]:
    """The arrays of a state (or its shape structs) as nested dicts, one per item of the checkpoint."""
    optimizer = unflatten(leaves_by_path(_optimizer_part(state)))
    ema = {} if state.ema is None else {"ema": state.ema}
    return {"trainable": state.trainable, "optimizer": optimizer, **ema}


def _optimizer_part(state: State) -> dict[str, Any]:
    return {"step": state.step, "state": state.opt_state}


def _layout(state: State) -> dict[str, str]:
    """Shape and dtype of every array of the state by path."""
    return {path: f"{jnp.dtype(x.dtype).name}{list(x.shape)}" for path, x in leaves_by_path(_items(state)).items()}
