"""A run's adapter, and what else it trained, as one safetensors file by our parameter paths; config and base in the metadata.

Such a file can stand wherever a run's folder is opened (`runs.saved_run`). It holds no base model, only the fingerprints of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.files import read_metadata, read_tensors, write_safetensors
from pidiff_jax.paths import flatten, unflatten

# Keys of the metadata; the values are JSON.
_CONFIG, _FACTS = "pidiff_jax.config", "pidiff_jax.facts"


def write_adapter(
    path: Path,
    params: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a run's adapter.

    Args:
        params: what was trained and the rest of the adapter, arrays in nested dicts, in any floating-point dtype.
        config: of the run.
        facts: `run_facts`.
        metadata: for other readers.

    Raises:
        FileExistsError: something is at `path` already.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    own = {_CONFIG: json.dumps(config), _FACTS: json.dumps(facts)}
    write_safetensors(path, tensors, {**(metadata or {}), **own})


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The config of the run that an adapter file was made of.

    Raises:
        ValueError: the file isn't one.
    """
    return _read_json(path, _CONFIG)


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write_adapter` was given, float32, and `step`, `seconds_training` and `frozen` (the base's fingerprints).

    Raises:
        ValueError: the file isn't an adapter.
    """
    facts = _read_json(path, _FACTS)
    if missing := [name for name in ("num_steps", "seconds_training", "fingerprints") if name not in facts]:
        raise ValueError(
            f"expected {missing[0]} in {path}, got {_FACTS} without it; make the file again, by python -m launch.export"
        )
    metadata = {
        "step": facts["num_steps"], "seconds_training": facts["seconds_training"], "frozen": facts["fingerprints"]
    }  # fmt: skip
    return unflatten(read_tensors(path, np.float32)), metadata


def _read_json(path: Path, key: str) -> dict[str, Any]:
    refusal = (
        f"expected the folder of a run or an adapter file of ours at {path}, got another file; python -m launch.export "
        "--format=safetensors makes one of a run"
    )
    if path.suffix != ".safetensors":
        raise ValueError(refusal)
    try:
        content = json.loads(read_metadata(path)[key])
    except (KeyError, json.JSONDecodeError):
        raise ValueError(refusal) from None
    if not isinstance(content, dict):
        raise ValueError(refusal)
    return content
