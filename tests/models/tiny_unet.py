"""Tiny UNets with random parameters, shared by the tests of the UNet."""

import functools

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pidiff_jax.models import shapes
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec

CONTEXT_DIM, TOKEN_DIM = 24, 20


def tiny_spec(variant: str | None = "decoupled", sink: bool = False) -> UNetSpec:
    identity = variant and IdentityAttentionSpec(variant, TOKEN_DIM, sink)
    return UNetSpec(
        block_out_channels=(16, 24),
        layers_per_block=1,
        down_attention=(True, False),
        num_heads=(2, 3),
        cross_attention_dim=CONTEXT_DIM,
        norm_num_groups=8,
        identity=identity,
    )


def unet_shapes(spec: UNetSpec) -> dict:
    """Plain shapes of the parameters of a UNet of this spec."""
    return nn.meta.unbox(shapes.unet_shapes(UNet(spec)))


def random_params(tree, seed: int = 0) -> dict:
    """Arrays with the given shapes, of a size that keeps features near one."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in traverse_util.flatten_dict(dict(tree), sep="/").items():
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        flat[path] = (
            1 + 0.2 * noise if path.endswith("scale") else noise * fan_in**-0.5 if noise.ndim > 1 else 0.2 * noise
        )
    return traverse_util.unflatten_dict({path: value.astype(np.float32) for path, value in flat.items()}, sep="/")


def inputs(spec: UNetSpec, batch: int = 2, size: int = 8, num_tokens: int = 3, seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    arrays = {
        "noisy_latents": rng.standard_normal((batch, size, size, spec.in_channels)),
        "timesteps": rng.integers(0, 1000, batch),
        "text": TextConditioning(rng.standard_normal((batch, 5, spec.cross_attention_dim)).astype(np.float32)),
    }
    if spec.identity is not None:
        arrays["identity_tokens"] = rng.standard_normal((batch, num_tokens, spec.identity.token_dim))
    types = {"timesteps": np.int32, "noisy_latents": np.float32, "identity_tokens": np.float32}
    return {name: x.astype(types[name]) if name in types else x for name, x in arrays.items()}


@functools.lru_cache(maxsize=4)
def tiny_unet(variant: str | None = "decoupled", sink: bool = False, optimised: bool = False):
    """(spec, parameters, inputs, jitted apply); optimised: compiled as users have it."""
    spec = tiny_spec(variant, sink)
    unet = UNet(spec)

    options = {"xla_backend_optimization_level": 3} if optimised else None

    @functools.partial(jax.jit, static_argnames="return_attention", compiler_options=options)
    def apply(params, arrays, return_attention=False):
        return unet.apply({"params": params}, **arrays, return_attention=return_attention)

    return spec, random_params(unet_shapes(spec)), inputs(spec), apply
