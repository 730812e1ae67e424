"""Drawing as a pure function: text and identity in, pictures out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.diffusion.samplers import Sampler, make_sampler, sample
from pidiff_jax.models.unet import expand_scale
from pidiff_jax.ranges import check_number
from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.guided import Guidance, Passes, make_conditions, predict


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    num_steps: of the sampler. guidance_scale: of classifier-free guidance; 1 means none.
    guidance_rescale: how far the guided prediction gets the spread of the conditional one, 0 (not at all) to 1; 0.7 is
        usual with zero-terminal-SNR schedules, whose pictures guidance overexposes.
    sampler: one of `diffusion.samplers.SAMPLERS`; "ddpm", "euler_ancestral", "lcm" and DDIM with eta add noise.
    eta: of DDIM alone: 0 is deterministic, 1 has DDPM's variance.
    identity_guidance_scale: of the identity by itself, with `guidance_scale` of the text alone; takes three predictions a step
        instead of two. None: one guidance for both.
    normalise_identity: what the identity adds in a layer gets the norm of what the text gives (see `identity_attention`).
    """

    num_steps: int = 25
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    eta: float = 0.0
    identity_guidance_scale: float | None = None
    normalise_identity: bool = False

    @property
    def passes(self) -> Passes:
        """Predictions of the network in a step."""
        if self.identity_guidance_scale is not None:
            return 3
        return 1 if self.guidance_scale == 1.0 else 2

    @property
    def guidance(self) -> Guidance:
        """The numbers that a step reads."""
        own = self.identity_guidance_scale
        return Guidance(self.guidance_scale, 1.0 if own is None else own, self.guidance_rescale)


def steps_between(num_steps: int, start: float = 0.0, end: float = 1.0) -> Float[np.ndarray, "n"]:
    """1 in the steps between two shares of a trajectory, else 0.

    Example:
        >>> steps_between(10, start=0.2)
        array([0., 0., 1., 1., 1., 1., 1., 1., 1., 1.], dtype=float32)

    Raises:
        ValueError: a start or end that is no share, or a start after the end.
    """
    check_number("identity_start", start, least=0.0, most=1.0)
    check_number("identity_end", end, least=0.0, most=1.0)
    if start > end:
        raise ValueError(f"expected identity_start up to identity_end={end}, got {start}; exchange them")
    number = np.arange(num_steps)
    return ((number >= round(start * num_steps)) & (number < round(end * num_steps))).astype(np.float32)


def sampler_for(components: Components, sampling: Sampling, first_step: int = 0) -> Sampler:
    """The sampler with its steps, in the schedule and the spacing of the model.

    first_step: steps before it are left out.

    Raises:
        ValueError: the model can't be drawn from like this; says why.
    """
    c = components
    # Of all samplers, diffusers' pipelines end DDIM alone where the model's config says.
    ends_in_noise = sampling.sampler == "ddim" and not c.set_alpha_to_one
    return make_sampler(
        sampling.sampler,
        c.schedule,
        c.prediction_type,
        sampling.num_steps,
        spacing=c.timestep_spacing,
        steps_offset=c.steps_offset,
        final_sigma="min" if ends_in_noise else "zero",
        eta=sampling.eta,
        first_step=first_step,
    )


def generate(
    components: Components,
    params: Mapping[str, Any],
    noise: Float[Array, "b h w c"],
    text_ids: Int[Array, "b m"],
    wplus: Float[Array, "b l d"] | Float[Array, "b p l d"] | None = None,
    identity_scale: float | Array = 1.0,
    sampling: Sampling = Sampling(),
    keys: Key[Array, "b"] | None = None,
) -> tuple[Float[Array, "b h2 w2 3"], Float[Array, "b h w"]]:
    """Draws pictures in [0, 1] and, where identity is given, the map of its attention (see `generate_latents`).

    Pure and jittable with `components` and `sampling` closed over.

    Raises:
        ValueError: shapes that don't fit the specs or each other.
    """
    latents, heat = generate_latents(components, params, noise, text_ids, wplus, identity_scale, sampling, keys)
    return decode_latents(components, params["vae"], latents / components.vae.spec.scaling_factor), heat


def decode_latents(
    components: Components, vae_params: Mapping[str, Any], latents: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 3"]:
    """Pixels in [0, 1] of raw latents, as the VAE's encoder gives them (unscaled)."""
    pixels = components.vae.apply({"params": vae_params}, latents, method="decode")
    return jnp.clip(pixels * 0.5 + 0.5, 0.0, 1.0)


def generate_latents(
    components: Components,
    params: Mapping[str, Any],
    noise: Float[Array, "b h w c"],
    text_ids: Int[Array, "b m"],
    wplus: Float[Array, "b l d"] | Float[Array, "b p l d"] | None = None,
    identity_scale: float | Array = 1.0,
    sampling: Sampling = Sampling(),
    keys: Key[Array, "b"] | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """Draws scaled latents, and the map of the identity's attention.

    Predictions without the conditions have the null text and, as in training, the zero W+ code. The map is the strength
    of the identity branch per latent position, each layer's sum made 1, averaged over layers and steps; zero without
    identity. Several people attend each by themselves; their tokens lie side by side in an `identity_scale` with tokens.
    `identity_scale` is (), (b,) or broadcasts to (b, h, w, t). `keys`, one for each picture, are for samplers that add
    noise; a picture depends on its own key alone, whatever else is in the batch.

    Raises:
        ValueError: shapes that don't fit the specs or each other, a sampler that can't be used with the model, or one
            that adds noise without keys.
    """
    c = components
    sampler, passes = sampler_for(c, sampling), sampling.passes
    tokens, scale = None, jnp.ones(())
    if wplus is not None:
        people = wplus if wplus.ndim == 4 else wplus[:, None]
        tokens = map_people(c, params, people)
        scale = expand_scale(identity_scale, noise.shape, math.prod(tokens.shape[1:3]))
    conditions = make_conditions(c, params, text_ids, tokens, latents_shape=noise.shape, passes=passes)

    def denoise(latents, timestep, number):
        return predict(
            c, params, conditions, sampling.guidance, latents, timestep, scale,
            passes=passes, normalise_identity=sampling.normalise_identity,
        )  # fmt: skip

    latents, heat = sample(denoise, sampler.start(noise), sampler, keys=keys, has_aux=True)
    return latents, heat.mean(0).sum(1)


def map_people(
    components: Components, params: Mapping[str, Any], wplus: Float[Array, "b p l d"]
) -> Float[Array, "b p t d_id"]:
    """The identity tokens of p people for each picture."""
    codes = wplus.reshape(-1, *wplus.shape[2:])
    tokens = components.identity_mapper.apply({"params": params["mapper"]}, codes)
    return tokens.reshape(*wplus.shape[:2], *tokens.shape[1:])
