"""What a training run consists of, once the config has been read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike

from data_pipeline.sources import Source
from pidiff_jax.optim.groups import GroupSpec
from pidiff_jax.optim.rules import ParameterRule, assign_groups, describe_parameters, split
from pidiff_jax.pipeline import Components
from pidiff_jax.sharding.rules import infer_shardings


@dataclass(frozen=True)
class Experiment:
    """Everything that the loop needs, built by train/build.py; no config below this point.

    params: the whole parameter tree, boxed with logical axis names where it was made here, plain where it was loaded.
    losses: `(params, batch, key, train) -> (name -> (b,), metrics)`.
    loss_weights: name -> weight of the losses that are summed.
    train_source, validation_source: make random-access sources of records; called when the training starts.
    frozen_sources: name -> content hash of where frozen parameters came from, stored with every checkpoint.
    components: what drawing needs beside the parameters; None where the task draws nothing.
    extra_params: parameters that drawing needs and training does not, such as {"vae": ...}.
    frozen_dtype: what frozen parameters are kept in; None keeps theirs.
    """

    name: str
    params: Mapping[str, Any]
    losses: Callable[..., tuple[dict, dict]]
    loss_weights: Mapping[str, float]
    rules: Sequence[ParameterRule]
    groups: Mapping[str, GroupSpec]
    train_source: Callable[[], Source]
    validation_source: Callable[[], Source]
    frozen_sources: Mapping[str, str] = field(default_factory=dict)
    components: Components | None = None
    extra_params: Mapping[str, Any] = field(default_factory=dict)
    frozen_dtype: DTypeLike | None = None


@dataclass(frozen=True)
class Partition:
    """An experiment's parameters, still on the host, in a trainable and a frozen part; with where each leaf belongs.

    groups: for every leaf the name of its parameter group, as a tree. table: the groups in words, printed before training.
    """

    trainable: Any
    frozen: Any
    trainable_shardings: Any
    frozen_shardings: Any
    groups: dict[str, Any]
    table: str


def partition(experiment: Experiment, mesh: Mesh) -> Partition:
    """Splits the parameters by the experiment's rules and lays them out on the mesh."""
    params = nn.meta.unbox(experiment.params)
    groups = assign_groups(experiment.rules, params)
    parts, shardings = split(params, groups), split(infer_shardings(experiment.params, mesh), groups)
    return Partition(*parts, *shardings, groups, describe_parameters(groups, params))
