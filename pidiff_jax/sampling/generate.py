"""DrawingParts: text and identity in, pictures out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from pidiff_jax.arrays import add_up
from pidiff_jax.diffusion.guidance import classifier_free, rescale_guidance
from pidiff_jax.diffusion.samplers import Sampler, make_sampler, sample
from pidiff_jax.models.unet import expand_scale
from pidiff_jax.sampling.components import Components


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    num_steps: of the sampler. guidance_scale: of classifier-free guidance; 1 means none.
    guidance_rescale: how far the guided prediction gets the spread of the conditional one, 0 (not at all) to 1; 0.7 is
        usual with zero-terminal-SNR schedules, whose pictures guidance overexposes.
    sampler: one of `diffusion.samplers.SAMPLERS`; "ddpm", "euler_ancestral", "lcm" and DDIM with eta add noise.
    eta: of DDIM alone: 0 is deterministic, 1 has DDPM's variance.
    """

    num_steps: int = 25
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    eta: float = 0.0


def sampler_for(components: Components, sampling: Sampling) -> Sampler:
    """The sampler with its steps, in the schedule and the spacing of the model.

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
    )


def generate(
    components: Components,
    params: Mapping[str, Any],
    noise: Float[Array, "b h w c"],
    text_ids: Int[Array, "b m"],
    wplus: Float[Array, "b l d"] | None = None,
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
    wplus: Float[Array, "b l d"] | None = None,
    identity_scale: float | Array = 1.0,
    sampling: Sampling = Sampling(),
    keys: Key[Array, "b"] | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """Draws scaled latents, and the map of the identity's attention.

    The unconditional half of guidance has the null text and, as in training, the zero W+ code. The map is the strength
    of the identity branch per latent position, each layer's sum made 1, averaged over layers and steps; zero without
    identity.
    `identity_scale` is (), (b,) or broadcasts to (b, h, w, t). `keys`, one for each picture, are for samplers that add
    noise; a picture depends on its own key alone, whatever else is in the batch.

    Raises:
        ValueError: shapes that don't fit the specs or each other, a sampler that can't be used with the model, or one
            that adds noise without keys.
    """
    c = components
    sampler = sampler_for(c, sampling)
    size, height, width, _ = noise.shape
    null_ids = jnp.broadcast_to(jnp.asarray(c.null_text_ids, text_ids.dtype), text_ids.shape)
    text = c.conditioner(params, jnp.concatenate([null_ids, text_ids]))
    tokens, scale = None, None
    if wplus is not None:
        codes = jnp.concatenate([jnp.zeros_like(wplus), wplus])
        tokens = c.identity_mapper.apply({"params": params["mapper"]}, codes)
        scale = expand_scale(identity_scale, noise.shape, tokens.shape)
        if len(scale) > 1:  # one per sample: both halves of guidance have it
            scale = jnp.concatenate([scale, scale])

    def denoise(latents, timestep):
        doubled = jnp.concatenate([latents, latents])
        times = jnp.full((2 * size,), timestep)
        args = ({"params": params["unet"]}, doubled, times, text)
        if tokens is None:
            output, heat = c.unet.apply(*args), jnp.zeros((size, height, width))
        else:
            output, maps = c.unet.apply(*args, tokens, scale, return_attention=True)
            heat = merge_attention({path: m[size:] for path, m in maps.items()}, (height, width))
        unconditional, conditional = jnp.split(output, 2)
        guided = classifier_free(unconditional, conditional, sampling.guidance_scale)
        if sampling.guidance_rescale:
            guided = rescale_guidance(guided, conditional, sampling.guidance_rescale)
        return guided, heat

    latents, heat = sample(denoise, sampler.start(noise), sampler, keys=keys, has_aux=True)
    return latents, heat.mean(0)


def merge_attention(maps: dict[str, Float[Array, "b h w t"]], size: tuple[int, int]) -> Float[Array, "b h w"]:
    """One map from all layers: tokens summed, resized to `size`, each layer's sum made 1, layers averaged."""

    def merged(layer: Float[Array, "b h w t"]) -> Float[Array, "b _h _w"]:
        strength = jax.image.resize(layer.sum(-1), (len(layer), *size), "nearest")
        return strength / (strength.sum((1, 2), keepdims=True) + 1e-9)

    return add_up(map(merged, maps.values())) / len(maps)
