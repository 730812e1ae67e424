"""What a training run consists of, once the config has been read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pidiff_jax.optim.groups import GroupSpec
from pidiff_jax.optim.rules import ParameterRule


@dataclass(frozen=True)
class Experiment:
    """Everything that the loop needs, built by train/build.py; no config below this point.

    params: the whole parameter tree, boxed with logical axis names where it was made here, plain where it was loaded.
    losses: `(params, batch, key, train) -> (name -> (b,), metrics)`.
    loss_weights: name -> weight of the losses that are summed.
    train_source, validation_source: random-access sources of records.
    frozen_sources: name -> content hash of where frozen parameters came from, stored with every checkpoint.
    preview: draws pictures of the present state of training; given (params, step), returns name -> uint8 picture and scores.
    """

    name: str
    params: Mapping[str, Any]
    losses: Callable[..., tuple[dict, dict]]
    loss_weights: Mapping[str, float]
    rules: Sequence[ParameterRule]
    groups: Mapping[str, GroupSpec]
    train_source: Any
    validation_source: Any
    frozen_sources: Mapping[str, str] = field(default_factory=dict)
    preview: Callable[[Mapping[str, Any], int], tuple[dict, dict]] | None = None
    components: Any = None  # what inference needs beside the parameters (modules, schedule, tokenizer)
