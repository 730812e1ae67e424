"""Reads the trained parameters of a run for sampling, scoring or export, without its optimizer."""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pidiff_jax.checkpoint.manager import ARRAY_ITEMS, JSON_ITEMS
from pidiff_jax.checkpoint.stepping_back import damage, is_of_the_machine, read_newest


def load_parameters(
    directory: str | Path, *, step: int | None = None, ema: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters, as host arrays in a nested dict, and the metadata of a checkpoint.

    Args:
        directory: where the run's `CheckpointManager` writes.
        step: None takes the newest that can be read, and warns of newer ones that can't; they stay where they are.
        ema: take the moving average, where the run kept one.

    The metadata has `step`, `config`, `frozen` (fingerprints), `layout` and `versions`.

    Raises:
        ValueError: there is no such checkpoint, or it can't be read.
    """
    root = Path(directory).absolute()
    if not root.is_dir():
        raise ValueError(f"expected a directory with checkpoints, got {root}, which doesn't exist; correct the path")
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ARRAY_ITEMS}
    handlers |= {name: ocp.JsonCheckpointHandler() for name in JSON_ITEMS}
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(root, options=options, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            present = f"the steps {steps}" if steps else "none"
            raise ValueError(f"expected {wanted} in {root}, got {present}; correct the path or the step")
        if step is None:
            chosen, found, failures = read_newest(root, steps, lambda step: _read(manager, step, ema))
            for damaged, reason in failures.items():
                warnings.warn(
                    f"the checkpoint {root / str(damaged)} is damaged ({reason}); went back to step {chosen}",
                    stacklevel=2,
                )
            return found
        try:
            return _read(manager, step, ema)
        except Exception as error:  # noqa: BLE001 (as in read_newest)
            if is_of_the_machine(error):
                raise
            raise ValueError(
                f"expected a readable checkpoint, got {root / str(step)}: {damage(error)}; choose another step of {steps}"
            ) from error


def _read(manager: ocp.CheckpointManager, step: int, ema: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    metadata = manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
    if missing := [key for key in ("config", "frozen", "layout", "versions") if key not in metadata]:
        raise ValueError(f"its metadata has no {', '.join(missing)}")
    item = "ema" if ema and any(path.startswith("ema/") for path in metadata["layout"]) else "trainable"
    stored = manager.item_metadata(step).get(item)
    if stored is None:
        raise ValueError(f"its item {item!r} is missing or has no files")
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(stored.tree))
    args = {item: ocp.args.PyTreeRestore(restore_args=on_host)}
    return manager.restore(step, args=ocp.args.Composite(**args))[item], {**metadata, "step": step}
