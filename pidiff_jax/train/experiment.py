"""What a training run consists of, once the config has been read: described completely, with nothing loaded yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike

from data_pipeline.sources import Source
from pidiff_jax.optim.groups import GroupSpec
from pidiff_jax.optim.rules import ParameterRule
from pidiff_jax.sampling.components import Components
from pidiff_jax.train.step import LossFn


class Sources(NamedTuple):
    """Functions that open the data of a training run; rendering or reading may take minutes."""

    train: Callable[[], Source]
    validation: Callable[[], Source]


@dataclass(frozen=True)
class Weights:
    """Parameters to start from.

    params: nested dicts of host arrays, with the paths of the experiment's shapes.
    extra: parameters that drawing needs and training does not, such as {"vae": ...}.
    fingerprints: name -> content hash of where frozen parameters came from, stored with every checkpoint.
    """

    params: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Everything that a training run needs; no config below this point.

    shapes: the whole parameter tree as shape structs, boxed with logical axis names where they may be split over a mesh.
    load: reads or makes the parameters; may take minutes.
    losses: `(params, batch, key, train) -> (name -> (b,), metrics)`.
    loss_weights: name -> weight of the losses that are summed.
    record: shape and dtype of a record's fields, as the model was made for; data of other latent sizes may come.
    frozen_dtype: what frozen parameters are kept in; None keeps theirs.
    write_weights: `(folder, params, card)` writes what a finished run is for beside its checkpoints, unless it is there;
        None writes nothing.
    """

    shapes: Mapping[str, Any]
    load: Callable[[], Weights]
    losses: LossFn
    loss_weights: Mapping[str, float]
    rules: Sequence[ParameterRule]
    groups: Mapping[str, GroupSpec]
    sources: Sources
    record: Mapping[str, jax.ShapeDtypeStruct]
    frozen_dtype: DTypeLike | None = None
    write_weights: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None] | None = None


@dataclass(frozen=True, kw_only=True)
class IdentityExperiment(Experiment):
    """The training of an identity adapter, whose model draws.

    components: the model with its identity branch: what drawing needs beside the parameters.
    """

    components: Components
