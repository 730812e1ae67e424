"""metrics.json: the scores of a run, for programs and for comparing runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pidiff_jax.checkpoint.atomic_file import write_atomically
from pidiff_jax.evaluation.bootstrap import Interval
from pidiff_jax.evaluation.on_off import OnOff

SCORES = (
    "identity_similarity",
    "retrieval_top1",
    "prompt_accuracy",
    "attention_in_face",
    "background_change",
    "diversity",
)


def write_metrics(
    path: Path,
    scores: Mapping[str, OnOff[Interval]],
    *,
    num_steps: int,
    seconds_training: float | int,
    versions: Mapping[str, str],
    fingerprints: Mapping[str, str],
    details: Mapping[str, Interval] | None = None,
    **facts: Any,
) -> None:
    """Writes metrics.json in one piece: readers see the old file or the whole new one.

    Every score is {"on": {"mean", "low", "high"}, "off": {...}}; the intervals are 95 %. Further `facts` are written as
    they are and must fit into JSON.

    Raises:
        ValueError: a score is missing or unknown.
    """
    if set(scores) != set(SCORES):
        raise ValueError(f"expected the scores {', '.join(SCORES)}, got {', '.join(sorted(scores))}; correct the names")
    content: dict[str, Any] = {name: scores[name].map(Interval._asdict).by_name() for name in SCORES}
    content |= {"details": {name: interval._asdict() for name, interval in (details or {}).items()}}
    content |= {"num_steps": num_steps, "seconds_training": seconds_training}
    content |= {"versions": dict(versions), "fingerprints": dict(fingerprints), **facts}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
