"""Drawing with changing parameters: compiled once, then used for every preview, score and sample."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array

from pidiff_jax.sampling.components import Components
from pidiff_jax.sampling.generate import Sampling, generate
from pidiff_jax.sharding.rules import DEFAULT_RULES, replicated

# (wplus (b, l, d), text_ids (b, m), noise (b, h, w, c), identity_scale) -> pixels (b, H, W, 3) in [0, 1] and identity
# attention (b, h, w), which is not read where the scale is 0.
GenerateFn = Callable[[np.ndarray, np.ndarray, Array, float], tuple[Array, Array]]


class CompiledSampler:
    """Draws with the given components on a mesh; `with_parameters` gives what `evaluate_identity` calls.

    With the identity off, the pictures come from the base model alone. Each of the two ways is compiled when it is
    first used, once for each batch size. In a run of several processes all must draw, and all get all pictures.
    """

    def __init__(self, components: Components, sampling: Sampling, mesh: Mesh):
        self.mesh = mesh

        def draw_on(params, noise, text_ids, wplus, identity_scale):
            return generate(components, params, noise, text_ids, wplus, identity_scale, sampling)

        def draw_off(params, noise, text_ids):
            return generate(components, params, noise, text_ids, sampling=sampling)

        self._draw_on = jax.jit(draw_on, out_shardings=replicated(mesh))
        self._draw_off = jax.jit(draw_off, out_shardings=replicated(mesh))

    def with_parameters(self, params: Mapping[str, Any]) -> GenerateFn:
        """params: {"unet", "text_encoder", "mapper", "vae"}."""

        def draw(wplus: np.ndarray, text_ids: np.ndarray, noise: Array, scale: float) -> tuple[Array, Array]:
            # Host arrays are the same in every process; arrays that lie on one device would not fit the mesh.
            host_noise = np.asarray(noise)
            with jax.set_mesh(self.mesh), nn.logical_axis_rules(DEFAULT_RULES):
                if scale == 0.0:
                    return self._draw_off(params, host_noise, text_ids)
                return self._draw_on(params, host_noise, text_ids, wplus, np.float32(scale))

        return draw
