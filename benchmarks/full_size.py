"""What the benchmarks run: Stable Diffusion 1.5's UNet with an identity adapter, with random weights."""

import argparse
from typing import Any

import numpy as np

TEXT_TOKENS, TEXT_WIDTH, IMAGE_EMBEDDING = 77, 768, 1024


def torch_unet(args: argparse.Namespace) -> tuple[Any, dict[str, Any], list]:
    """diffusers' UNet with IP-Adapter processors: (model, keyword arguments of a call, the adapter's parameters)."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(cross_attention_dim=TEXT_WIDTH).requires_grad_(False)
    adapter = {}
    for number, name in enumerate(model.attn_processors):
        if number % 2:
            width = model.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            adapter |= {f"{number}.to_{kind}_ip.weight": torch.randn(width, TEXT_WIDTH) * 0.03 for kind in "kv"}
    projection = {
        "proj.weight": torch.randn(4 * TEXT_WIDTH, IMAGE_EMBEDDING) * 0.03,
        "proj.bias": torch.zeros(4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    model._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}], low_cpu_mem_usage=False)
    model.requires_grad_(False)
    trainable = list(model.encoder_hid_proj.parameters())
    trainable += [p for name, p in model.named_parameters() if "_ip." in name]
    call = {
        "sample": torch.randn(args.batch, 4, args.size, args.size),
        "timestep": torch.full((args.batch,), 500),
        "encoder_hidden_states": torch.randn(args.batch, TEXT_TOKENS, TEXT_WIDTH),
        "added_cond_kwargs": {"image_embeds": [torch.randn(args.batch, 1, IMAGE_EMBEDDING)]},
    }
    return model, call, trainable


def our_unet(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """(UNet, mapper, {"unet", "mapper"} parameters, inputs)."""
    import jax
    from flax import linen as nn

    from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
    from pidiff_jax.models.shapes import mapper_shapes, unet_shapes
    from pidiff_jax.models.text_conditioning import TextConditioning
    from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec

    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    spec = MapperSpec()
    unet, mapper = UNet(UNetSpec.sd15(IdentityAttentionSpec())), IdentityMapper(spec)
    inputs = {
        "noisy_latents": normal(args.batch, args.size, args.size, 4),
        "timesteps": np.full((args.batch,), 500),
        "text": TextConditioning(normal(args.batch, TEXT_TOKENS, TEXT_WIDTH)),
        "wplus": normal(args.batch, spec.num_layers, spec.wplus_dim),
    }
    shapes = {"unet": unet_shapes(unet), "mapper": mapper_shapes(mapper)}

    def random(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:
            return jax.numpy.full(leaf.shape, path[-1].key == "scale", leaf.dtype)
        return jax.numpy.asarray(normal(*leaf.shape) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5))

    params = jax.tree_util.tree_map_with_path(random, nn.meta.unbox(shapes))
    return unet, mapper, params, jax.tree.map(jax.numpy.asarray, inputs)
