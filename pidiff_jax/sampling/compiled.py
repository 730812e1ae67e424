"""Drawing with changing parameters: compiled once, then used for every preview, score and sample."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array

from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling, decode_latents, generate_latents
from pidiff_jax.sharding.rules import DEFAULT_RULES, replicated, scatter

# (wplus (b, l, d), text_ids (b, m), noise (b, h, w, c), identity_scale) -> pixels (b, H, W, 3) in [0, 1] and identity
# attention (b, h, w), which is not read where the scale is 0.
GenerateFn = Callable[[np.ndarray, np.ndarray, Array, float], tuple[Array, Array]]


class CompiledSampler:
    """Draws with the given components on a mesh; `with_parameters` gives what `evaluate_identity` calls.

    With the identity off, the pictures come from the base model alone. Each of the two ways, and the decoder that both share,
    is compiled when it is first used, once for each batch size. The devices share the pictures of a batch where they can be
    divided among them. In a run of several processes all must draw, and all get all pictures.
    """

    def __init__(self, components: Components, sampling: Sampling, mesh: Mesh):
        self.mesh = mesh
        scaling_factor = components.vae.spec.scaling_factor

        def latents_on(params, noise, text_ids, wplus, identity_scale):
            latents, heat = generate_latents(components, params, noise, text_ids, wplus, identity_scale, sampling)
            return latents / scaling_factor, heat

        def latents_off(params, noise, text_ids):
            latents, heat = generate_latents(components, params, noise, text_ids, sampling=sampling)
            return latents / scaling_factor, heat

        # The latents stay where they are drawn, until each device has decoded its own.
        self._latents_on = jax.jit(latents_on, out_shardings=(None, replicated(mesh)))
        self._latents_off = jax.jit(latents_off, out_shardings=(None, replicated(mesh)))
        self._decode = jax.jit(partial(decode_latents, components), out_shardings=replicated(mesh))

    def decode(self, vae_params: Mapping[str, Any], latents: np.ndarray | Array) -> Array:
        """Pixels in [0, 1] of raw latents (b, h, w, c)."""
        shared = scatter(latents, self.mesh) if isinstance(latents, np.ndarray) else latents
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(DEFAULT_RULES):
            return self._decode(vae_params, shared)

    def with_parameters(self, params: Mapping[str, Any]) -> GenerateFn:
        """params: {"unet", "text_encoder", "mapper", "vae"}."""

        def draw(wplus: np.ndarray, text_ids: np.ndarray, noise: Array, scale: float) -> tuple[Array, Array]:
            # Host arrays are the same in every process; arrays that lie on one device would not fit the mesh.
            codes, ids, start = (scatter(np.asarray(x), self.mesh) for x in (wplus, text_ids, noise))
            with jax.set_mesh(self.mesh), nn.logical_axis_rules(DEFAULT_RULES):
                if scale == 0.0:
                    latents, heat = self._latents_off(params, start, ids)
                else:
                    latents, heat = self._latents_on(params, start, ids, codes, np.float32(scale))
            return self.decode(params["vae"], latents), heat

        return draw
