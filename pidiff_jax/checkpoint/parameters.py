"""Reads the trained parameters of a run for sampling, scoring or export, without its optimizer."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pidiff_jax.checkpoint.manager import ARRAY_ITEMS, JSON_ITEMS


def load_parameters(
    directory: str | Path, *, step: int | None = None, ema: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters, as host arrays in a nested dict, and the metadata of a checkpoint.

    Args:
        directory: where the run's `CheckpointManager` writes.
        step: None takes the newest.
        ema: take the moving average, where the run kept one.

    The metadata has `step`, `config`, `frozen` (fingerprints), `layout` and `versions`.

    Raises:
        ValueError: there is no such checkpoint.
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
            raise ValueError(f"expected {wanted} in {root}, got the steps {steps}; correct the path or the step")
        chosen = steps[-1] if step is None else step
        metadata = manager.restore(chosen, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
        item = "ema" if ema and any(path.startswith("ema/") for path in metadata["layout"]) else "trainable"
        stored = manager.item_metadata(chosen)[item]
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(stored.tree))
        args = {item: ocp.args.PyTreeRestore(restore_args=on_host)}
        return manager.restore(chosen, args=ocp.args.Composite(**args))[item], {**metadata, "step": chosen}
