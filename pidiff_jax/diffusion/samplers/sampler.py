"""What every sampler is: levels, factors for each step, and a step function; and the one loop that runs them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.diffusion.parameterisation import to_eps, to_x0
from pidiff_jax.diffusion.samplers.levels import Levels


class Prediction(NamedTuple):
    """What the network's output says of the latents: the clean ones and the noise in them."""

    x0: Float[Array, "b h w c"]
    eps: Float[Array, "b h w c"]


class Level(NamedTuple):
    """The latents are now signal * x0 + noise * eps; the timestep is that which the network reads next, 0 at the end."""

    timestep: Float[Array, ""]
    signal: Float[Array, ""]
    noise: Float[Array, ""]


# (latents, memory, prediction, this step's factors, fresh noise or None) -> (latents of the next level, memory)
StepFn = Callable[[Array, Any, Prediction, Any, Array | None], tuple[Array, Any]]


@dataclass(frozen=True)
class Method:
    """What a sampler is beside its numbers; hashable, so that programs can be kept by it.

    step: pure; the same signature for all.
    memory_of: what a multistep method remembers before the first step, from latents of the right shape.
    prediction_type: what the network predicts.
    stochastic: steps add noise, so that `advance` needs keys.
    """

    step: StepFn
    memory_of: Callable[[Array], Any]
    prediction_type: str
    stochastic: bool


class Steps(NamedTuple):
    """What steps read, each array (n,); slices of it are parts of a trajectory.

    number: of the step in the whole trajectory, from 0.
    """

    now: Level
    following: Level
    factors: Any
    number: Int[Array, "n"]


class State(NamedTuple):
    """Latents on their way, and what the method remembers."""

    latents: Float[Array, "b h w c"]
    memory: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sampler:
    """A trajectory, made by `make_sampler` on the host and run by `sample`.

    It may be closed over in jit, or be an argument: then samplers of as many steps and one method share a program.

    Latents keep variance 1 in every sampler, those that are published in terms of sigma too: latents in sigma are
    divided by sqrt(1 + sigma^2), which is what the network reads. So all start from the same noise and can be looked at,
    or be held to a given picture, in the same way on the way.

    factors: a pytree of arrays (n,), one entry for each step.
    noise_scale: of the latents that drawing starts from.
    first_step: steps that were left out at the start.
    """

    levels: Levels
    factors: Any
    noise_scale: Any
    method: Method = field(metadata={"static": True})
    first_step: int = field(metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """Steps that are taken."""
        return len(self.levels.timesteps)

    def start(
        self, noise: Float[Array, "b h w c"], latents: Float[Array, "b h w c"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Latents to start from, out of standard normal noise and, where a picture is edited, its clean latents.

        Raises:
            ValueError: the trajectory starts in the middle, and there are no latents.
        """
        if latents is not None:
            return self.levels.signal[0] * latents + self.levels.noise[0] * noise
        if self.first_step:
            raise ValueError(
                f"expected latents to start from with first_step={self.first_step}, got None; pass those of a picture, or "
                "start at step 0"
            )
        return self.noise_scale * noise

    def begin(self, latents: Float[Array, "b h w c"]) -> State:
        """The state before the first step, of latents from `start`."""
        latents = latents.astype(jnp.float32)
        return State(latents, self.method.memory_of(latents))

    @property
    def steps(self) -> Steps:
        """What the steps read."""
        own = self.levels
        level = Level(*(jnp.asarray(x, jnp.float32) for x in (jnp.append(own.timesteps, 0.0), own.signal, own.noise)))
        return Steps(
            now=jax.tree.map(lambda x: x[:-1], level),
            following=jax.tree.map(lambda x: x[1:], level),
            factors=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.factors),
            number=self.first_step + jnp.arange(self.num_steps),
        )


# (latents (b, h, w, c), timestep (), number of the step ()) -> the network's prediction, or (prediction, aux)
DenoiseFn = Callable[[Float[Array, "b h w c"], Float[Array, ""], Int[Array, ""]], Any]
ConstrainFn = Callable[[Float[Array, "b h w c"], Level], Float[Array, "b h w c"]]


def sample(
    denoise_fn: DenoiseFn,
    latents: Float[Array, "b h w c"],
    sampler: Sampler,
    *,
    keys: Key[Array, "b"] | None = None,
    constrain: ConstrainFn | None = None,
    clip_x0: float | None = None,
    has_aux: bool = False,
) -> Any:
    """Runs a whole trajectory and returns latents, or (latents, aux of all steps stacked) with `has_aux`.

    latents: from `sampler.start`. The rest: see `advance`.

    Raises:
        ValueError: a sampler that adds noise without keys.
    """
    state, aux = advance(
        denoise_fn, sampler.begin(latents), sampler.steps, sampler.method,
        keys=keys, constrain=constrain, clip_x0=clip_x0, has_aux=has_aux,
    )  # fmt: skip
    return (state.latents, aux) if has_aux else state.latents


def advance(
    denoise_fn: DenoiseFn,
    state: State,
    steps: Steps,
    method: Method,
    *,
    keys: Key[Array, "b"] | None = None,
    constrain: ConstrainFn | None = None,
    clip_x0: float | None = None,
    has_aux: bool = False,
) -> tuple[State, Any]:
    """Takes some steps of a trajectory: the loop that all samplers share.

    A trajectory may be cut anywhere: running its parts one after another gives what running the whole gives.

    Args:
        denoise_fn: the network's prediction, with aux if `has_aux`. Guidance belongs in here.
        state: from `Sampler.begin`, or of the part before.
        steps: `Sampler.steps`, or a slice of all its arrays.
        keys: one for each picture, for samplers that add noise. The noise is a function of a picture's key and the step's
            number alone, whatever else is in the batch.
        constrain: (latents, their level) -> latents, after every step; for inpainting.
        clip_x0: clips the predicted clean latents to [-clip_x0, clip_x0], and leaves the predicted noise; None does not.
        has_aux: see `denoise_fn`.

    Returns:
        The state after the steps, and what they gave as aux, stacked (None without `has_aux`).

    Raises:
        ValueError: a sampler that adds noise without keys.
    """
    if method.stochastic and keys is None:
        raise ValueError(
            "expected keys for a sampler that adds noise, got None; pass keys=jax.random.split(jax.random.key(seed), b), "
            "one for each picture"
        )

    def body(state: State, step: Steps) -> tuple[State, Any]:
        latents, memory = state
        output = denoise_fn(latents, step.now.timestep, step.number)
        output, aux = output if has_aux else (output, None)
        arguments = (output.astype(jnp.float32), latents, step.now.signal, step.now.noise, method.prediction_type)
        x0, eps = to_x0(*arguments), to_eps(*arguments)
        if clip_x0 is not None:
            x0 = jnp.clip(x0, -clip_x0, clip_x0)
        noise = _fresh_noise(keys, step.number, latents.shape[1:]) if method.stochastic else None
        latents, memory = method.step(latents, memory, Prediction(x0, eps), step.factors, noise)
        if constrain is not None:
            latents = constrain(latents, step.following)
        return State(latents, memory), aux

    return jax.lax.scan(body, state, steps)


def _fresh_noise(
    keys: Key[Array, "b"] | None, number: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b h w c"]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)
