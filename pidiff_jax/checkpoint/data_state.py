"""The position in the data as JSON: one entry per process, for each process reads its own share."""

import base64
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def pack(data_state: Any) -> list[Any]:
    """Collects the positions of all processes; every process calls it and gets the same list.

    data_state is bytes, JSON-compatible, or None.
    """
    entry = {"base64": base64.b64encode(data_state).decode()} if isinstance(data_state, bytes) else {"json": data_state}
    if jax.process_count() == 1:
        return [entry]
    text = np.frombuffer(json.dumps(entry).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(text.size))))
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: text.size] = text
    return [json.loads(bytes(row)) for row in np.asarray(multihost_utils.process_allgather(padded))]


def unpack(entries: list[Any]) -> Any:
    """Returns the position of this process as it was given to `pack`; a position that all share fits any number of them.

    Raises:
        ValueError: the run was saved by another number of processes, each at a position of its own.
    """
    if all(entry == entries[0] for entry in entries):
        entries = entries[:1] * jax.process_count()
    if len(entries) != jax.process_count():
        raise ValueError(
            f"expected a checkpoint of {jax.process_count()} processes, got one of {len(entries)}: each process has its own "
            "position in the data; resume with the same number of processes"
        )
    entry = entries[jax.process_index()]
    return base64.b64decode(entry["base64"]) if "base64" in entry else entry["json"]
