"""A training that takes milliseconds: a convolution, attention-like projections and noise, on data made up on the spot."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipeline.sources import ArraySource
from pidiff_jax.models.layers import Conv, Dense, GroupNorm
from pidiff_jax.optim.groups import GroupedOptimizer, GroupSpec, make_optimizer
from pidiff_jax.optim.rules import ParameterRule, assign_groups, split
from pidiff_jax.runs.training import RunParts
from pidiff_jax.sharding.rules import infer_shardings, place
from pidiff_jax.train.experiment import Experiment, Sources, Weights
from pidiff_jax.train.state import TrainState, init_state

RULES = [ParameterRule("^identity/", "identity"), ParameterRule("^mapper/", "mapper"), ParameterRule(".*", "frozen")]
SPECS = {
    "identity": GroupSpec(1e-2, optimizer="muon", schedule="cosine"),
    "mapper": GroupSpec(3e-3, weight_decay=0.1, warmup_steps=2),
}
LOSS_WEIGHTS = {"denoising": 1.0, "localisation": 0.5, "preserve": 0.0}
NUM_STEPS = 20
TWO_PROCESSES = {"mesh": {"data": 2, "fsdp": 2, "tensor": 1}}  # of two devices each
OVER_AT_STEP_3 = 5.5  # seconds of `made_up_clock`


class TinyNetwork(nn.Module):
    """One of each kind of layer, so that every logical axis is there."""

    width: int = 16

    @nn.compact
    def __call__(self, latents, wplus):
        x = GroupNorm(4, name="norm")(Conv(self.width, name="conv")(latents))
        tokens = Dense(self.width, axes=("embed", "mlp"), name="mapper")(wplus)
        attended = Dense(2 * self.width, axes=("embed", "heads"), name="identity")(tokens)
        x = x + Dense(self.width, axes=("heads", "embed"), name="to_out")(nn.gelu(attended))[:, None, None]
        return Conv(latents.shape[-1], name="conv_out")(nn.silu(x))


NETWORK = TinyNetwork()


def loss_fn(params: Any, batch: Mapping[str, Any], key: Any, train: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    noise = jax.random.normal(key, batch["latents"].shape) if train else jnp.zeros_like(batch["latents"])
    prediction = NETWORK.apply({"params": params}, batch["latents"] + noise, jnp.asarray(batch["wplus"]))
    error = jnp.square(prediction - noise)
    losses = {"denoising": error.mean(axis=(1, 2, 3)), "localisation": jnp.abs(prediction).mean(axis=(1, 2, 3))}
    return losses, {"noise_mean": noise.mean(axis=(1, 2, 3))}


def make_batch(index: int, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "latents": rng.normal(size=(size, 4, 4, 2)).astype(np.float32),
        "wplus": rng.normal(size=(size, 8)).astype(np.float32),
    }


def start(mesh: Mesh, *, clip_norm: float | None = 1.0) -> tuple[TrainState, Any, GroupedOptimizer]:
    """Returns the initial state, the frozen parameters and the optimizer, placed on the mesh."""
    boxed = NETWORK.init(jax.random.key(7), *map(jnp.asarray, make_batch(0).values()))["params"]
    params = nn.unbox(boxed)
    groups = assign_groups(RULES, params)
    shardings = infer_shardings(boxed, mesh, min_elements=0)
    trainable, frozen = split(params, groups)
    trainable_shardings, frozen_shardings = split(shardings, groups)
    optimizer = make_optimizer(groups, SPECS, NUM_STEPS, clip_norm)
    state = init_state(trainable, optimizer, ema=True, shardings=trainable_shardings)
    return state, place(frozen, frozen_shardings), optimizer


def made_up_clock() -> Callable[[], float]:
    """For train/time_limit.py: a second passes whenever it is read, which is twice a step."""
    seconds = itertools.count(1)
    return lambda: float(next(seconds))


def make_config(**changes) -> ConfigDict:
    """A run of twelve steps on eight devices."""
    config = ConfigDict(
        {
            "task": "tiny", "num_steps": 12, "batch_size": 8, "seed": 3, "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
            "clip_norm": 1.0, "ema_decay": 0.9, "accumulate_steps": 1, "log_every_steps": 3, "validate_every_steps": 6,
            "checkpoint_every_steps": 4, "num_checkpoints": 2, "max_seconds": None, "num_workers": 0,
            "profile_steps": None,
        }
    )  # fmt: skip
    config.update(changes)
    return config


def make_experiment(loss=loss_fn, after=None) -> Experiment:
    """The experiment as `build_experiment` would give it. after: called before each record is read, to interrupt a run."""
    source = ArraySource({name: np.concatenate([array] * 5) for name, array in make_batch(0).items()})

    class Interrupted(ArraySource):
        def __getitem__(self, index):
            if after is not None:
                after()
            return super().__getitem__(index)

    def init():
        return NETWORK.init(jax.random.key(7), *map(jnp.asarray, make_batch(0).values()))["params"]

    return Experiment(
        shapes=jax.eval_shape(init),
        load=lambda: Weights(nn.unbox(init()), fingerprints={"base": "abc"}),
        losses=loss,
        loss_weights=LOSS_WEIGHTS,
        rules=RULES,
        groups=SPECS,
        sources=Sources(lambda: Interrupted(source.arrays), lambda: source),
        record={name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in source.arrays.items()},
    )


def build_tiny(**options):
    """In place of `runs.training.build_parts`; options: see `make_experiment`."""
    return lambda config: RunParts(make_experiment(**options))
