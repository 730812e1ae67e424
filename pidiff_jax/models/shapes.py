"""Shapes of every network's parameters, without making one array: boxed structs that carry their logical axis names."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from pidiff_jax.models.clip import ClipText
from pidiff_jax.models.identity_mapper import IdentityMapper
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import UNet
from pidiff_jax.models.vae import AutoencoderKL

Shapes = dict[str, Any]
Network = TypeVar("Network", bound=nn.Module)


def parameter_shapes(network: nn.Module, *inputs: Any, **options: Any) -> Shapes:
    """The tree that `network.init` would return for inputs of these shapes (arrays, or shape structs)."""
    return jax.eval_shape(lambda *args: network.init(jax.random.key(0), *args, **options), *inputs)["params"]


def _once(shapes: Callable[[Network], Shapes]) -> Callable[[Network], Shapes]:
    """Traces a network once, which takes a large one seconds; each caller gets a tree of its own."""
    traced = functools.lru_cache(maxsize=32)(shapes)
    return functools.wraps(shapes)(lambda network: jax.tree.map(lambda leaf: leaf, traced(network)))


@_once
def unet_shapes(unet: UNet) -> Shapes:
    """Parameters of a UNet, with its identity branch where its spec has one."""
    size = 2 ** (len(unet.spec.block_out_channels) - 1)
    latents = jax.ShapeDtypeStruct((1, size, size, unet.spec.in_channels), jnp.float32)
    text = jax.eval_shape(lambda: TextConditioning(jnp.zeros((1, 1, unet.spec.cross_attention_dim))))
    return parameter_shapes(unet, latents, jax.ShapeDtypeStruct((1,), jnp.float32), text)


@_once
def text_encoder_shapes(text_encoder: ClipText) -> Shapes:
    """Parameters of a CLIP text encoder."""
    return parameter_shapes(text_encoder, jax.ShapeDtypeStruct((1, text_encoder.spec.max_length), jnp.int32))


@_once
def vae_shapes(vae: AutoencoderKL) -> Shapes:
    """Parameters of an autoencoder, encoder and decoder."""
    side = vae.spec.downsampling
    return parameter_shapes(vae, jax.ShapeDtypeStruct((1, side, side, vae.spec.in_channels), jnp.float32))


@_once
def mapper_shapes(mapper: IdentityMapper) -> Shapes:
    """Parameters of an identity mapper."""
    wplus = jax.ShapeDtypeStruct((1, mapper.spec.num_layers, mapper.spec.wplus_dim), jnp.float32)
    return parameter_shapes(mapper, wplus)
