"""Drawing with changing parameters and requests: compiled once for each shape, for every preview, score and sample."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer

from pidiff_jax.diffusion.samplers import Level, Method, State, Steps, advance
from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling, decode_latents, map_people, sampler_for, steps_between
from pidiff_jax.sampling.guided import Conditions, Guidance, Passes, make_conditions, predict
from pidiff_jax.sharding.rules import DEFAULT_RULES, replicated, scatter

# (wplus (b, l, d), text_ids (b, m), noise (b, h, w, c), identity_scale) -> pixels (b, H, W, 3) in [0, 1] and identity
# attention (b, h, w), which is not read where the scale is 0.
GenerateFn = Callable[[np.ndarray, np.ndarray, np.ndarray | Array, float], tuple[Array, Array]]
# Told after every step: how many of them have been taken, and how many there are.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What a batch of b pictures is drawn from; host arrays.

    noise: standard normal; what drawing starts from.
    tokens: of p people for each picture, from `CompiledSampler.tokens`; None draws what the base draws.
    schedule: the identity's strength in each of the n steps, for each picture or all, and for each token of each person or
        all; steps that `first_step` leaves out count.
    regions: where each token of each person acts, at the latents' resolution; None: everywhere.
    negative_ids: what guidance leads away from; None: the empty text.
    seeds: of the noise that samplers add on the way, one for each picture.
    known: clean latents of pictures to go on from. redraw: 1 where they are drawn anew, 0 where they stay; None: everywhere.
    first_step: of the trajectory; above 0 only with `known`.
    """

    text_ids: Int[np.ndarray, "b m"]
    noise: Float[np.ndarray, "b h w c"]
    tokens: Float[np.ndarray, "b p t d_id"] | None = None
    schedule: Float[np.ndarray, "n #b #pt"] | None = None
    regions: Float[np.ndarray, "#b h w pt"] | None = None
    negative_ids: Int[np.ndarray, "b m"] | None = None
    seeds: Integer[np.ndarray, "b"] | None = None
    known: Float[np.ndarray, "b h w c"] | None = None
    redraw: Float[np.ndarray, "b h w 1"] | None = None
    first_step: int = 0


class CompiledSampler:
    """Draws with the given components on a mesh, as often as one likes, with other parameters, requests and settings.

    Compiled are, each when it is first used, once for each shape: the conditions, one step or a whole trajectory, and the
    decoder. With the identity off, the pictures come from the base model alone. The devices share the pictures of a batch
    where they can be divided among them. In a run of several processes all must draw, and all get all pictures.
    """

    def __init__(self, components: Components, mesh: Mesh):
        self.components, self.mesh = components, mesh
        whole = replicated(mesh)
        self._tokens = jax.jit(partial(map_people, components), out_shardings=whole)
        self._conditions = jax.jit(partial(make_conditions, components), static_argnames=("passes", "latents_shape"))
        self._advance = jax.jit(
            self._advanced,
            static_argnames=("method", "passes", "normalise_identity"),
            donate_argnames=("state", "heat"),
        )
        self._decode = jax.jit(partial(decode_latents, components), out_shardings=whole)
        self._gather = jax.jit(lambda x: x, out_shardings=whole)

    def tokens(self, params: Mapping[str, Any], wplus: Float[np.ndarray, "b p l d"]) -> Float[np.ndarray, "b p t d_id"]:
        """The identity tokens of W+ codes."""
        with self._on_mesh():
            return np.asarray(self._tokens({"mapper": params["mapper"]}, np.asarray(wplus, np.float32)))

    def decode(self, vae_params: Mapping[str, Any], latents: np.ndarray | Array) -> Array:
        """Pixels in [0, 1] of raw latents (b, h, w, c)."""
        shared = scatter(latents, self.mesh) if isinstance(latents, np.ndarray) else latents
        with self._on_mesh():
            return self._decode(vae_params, shared)

    def draw(
        self, params: Mapping[str, Any], request: Request, sampling: Sampling, on_step: OnStep | None = None
    ) -> tuple[Array, Array]:
        """Scaled latents (b, h, w, c), and each person's attention (b, p, h, w), zero without identity.

        The attention is the mean over those steps in which anybody's identity has a strength.

        params: {"unet", "text_encoder", "mapper"}.
        on_step: makes each step a call of one program, whatever the number of steps; else a trajectory is one call.

        Raises:
            ValueError: the model can't be drawn from like this; says why.
        """
        r, passes = request, sampling.passes
        sampler = sampler_for(self.components, sampling, r.first_step)
        noise, known, redraw = self._share(r.noise), self._shared(r.known), self._shared(r.redraw)
        with self._on_mesh():
            conditions = self._conditions(
                params, self._share(r.text_ids), self._shared(r.tokens), self._shared(r.negative_ids),
                latents_shape=r.noise.shape, passes=passes,
            )  # fmt: skip
            state = sampler.begin(sampler.start(noise, known))
            num_people = 1 if r.tokens is None else r.tokens.shape[1]
            heat = self._share(np.zeros((len(r.noise), num_people, *r.noise.shape[1:3]), np.float32))
            steps = jax.tree.map(np.asarray, sampler.steps)
            schedule = np.ones((sampling.num_steps, 1, 1), np.float32) if r.schedule is None else r.schedule
            length = 1 if on_step else sampler.num_steps
            for start in range(0, sampler.num_steps, length):
                part = jax.tree.map(lambda x, start=start: x[start : start + length], steps)
                state, heat = self._advance(
                    params, conditions, sampling.guidance, state, heat, part, np.asarray(schedule[part.number], np.float32),
                    r.regions, self._shared(r.seeds), noise, known, redraw,
                    method=sampler.method, passes=passes, normalise_identity=sampling.normalise_identity,
                )  # fmt: skip
                if on_step:
                    jax.block_until_ready(state.latents)
                    on_step(start + 1, sampler.num_steps)
            num_acting = (schedule[steps.number] != 0).any((1, 2)).sum()
            return state.latents, self._gather(heat / max(num_acting, 1))

    def with_parameters(self, params: Mapping[str, Any], sampling: Sampling, identity_start: float = 0.0) -> GenerateFn:
        """What `evaluate_identity` calls.

        params: {"unet", "text_encoder", "mapper", "vae"}.
        identity_start: share of the steps before the identity is there.
        """
        present = steps_between(sampling.num_steps, identity_start)[:, None, None]

        def draw(
            wplus: np.ndarray, text_ids: np.ndarray, noise: np.ndarray | Array, scale: float
        ) -> tuple[Array, Array]:
            codes = None if scale == 0.0 else self.tokens(params, np.asarray(wplus)[:, None])
            request = Request(np.asarray(text_ids), np.asarray(noise), codes, np.float32(scale) * present)
            latents, heat = self.draw(params, request, sampling)
            return self.decode(params["vae"], latents / self.components.vae.spec.scaling_factor), heat.sum(1)

        return draw

    def _advanced(
        self,
        params: Mapping[str, Any],
        conditions: Conditions,
        guidance: Guidance,
        state: State,
        heat: Float[Array, "b p h w"],
        steps: Steps,
        schedule: Float[Array, "n #b #pt"],
        regions: Float[Array, "#b h w pt"] | None,
        seeds: Integer[Array, "b"] | None,
        noise: Float[Array, "b h w c"],
        known: Float[Array, "b h w c"] | None,
        redraw: Float[Array, "b h w 1"] | None,
        *,
        method: Method,
        passes: Passes,
        normalise_identity: bool,
    ) -> tuple[State, Float[Array, "b p h w"]]:
        """Some steps further, with the attention of these steps added up."""

        def denoise(latents: Array, timestep: Array, number: Array) -> tuple[Array, Array]:
            scale = schedule[number - steps.number[0]][:, None, None, :]
            return predict(
                self.components, params, conditions, guidance, latents, timestep, scale if regions is None else scale * regions,
                passes=passes, normalise_identity=normalise_identity,
            )  # fmt: skip

        def hold(latents: Array, level: Level) -> Array:
            assert redraw is not None and known is not None
            return jnp.where(redraw > 0, latents, level.signal * known + level.noise * noise)

        keys = None if seeds is None else jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(seeds)
        constrain = None if redraw is None else hold
        state, maps = advance(denoise, state, steps, method, keys=keys, constrain=constrain, has_aux=True)
        acts = (schedule != 0).any((1, 2))
        return state, heat + jnp.where(acts[:, None, None, None, None], maps, 0.0).sum(0)

    def _share(self, array: np.ndarray) -> Array:
        # Host arrays are the same in every process; arrays that lie on one device would not fit the mesh.
        return scatter(np.asarray(array), self.mesh)

    def _shared(self, array: np.ndarray | None) -> Array | None:
        return None if array is None else self._share(array)

    @contextlib.contextmanager
    def _on_mesh(self) -> Iterator[None]:
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(DEFAULT_RULES):
            yield


def initial_noise(seeds: Integer[np.ndarray, "b"], shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Standard normal noise (h, w, c) of each seed, whatever else is drawn beside it."""
    draw = jax.vmap(lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), 0), shape))
    return np.asarray(draw(np.asarray(seeds, np.uint32)))
