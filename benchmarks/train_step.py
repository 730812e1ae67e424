"""One training step of an identity adapter on Stable Diffusion 1.5's UNet, ours beside PyTorch's (float32, AdamW).

python benchmarks/train_step.py --rounds=3

The UNet is frozen; the adapter's keys and values and its image projection (PyTorch) or mapper (ours) are trained on the
squared error of the predicted noise.
"""

import argparse
from collections.abc import Callable

from full_size import our_unet, torch_unet
from side_by_side import main

LEARNING_RATE = 1e-4


def pytorch(args: argparse.Namespace) -> Callable[[], None]:
    """diffusers with IP-Adapter processors, no gradient checkpointing."""
    import torch

    model, call, trainable = torch_unet(args)
    model.train()
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
    noise = torch.randn_like(call["sample"])

    def run() -> None:
        loss = torch.nn.functional.mse_loss(model(**call).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def ours(args: argparse.Namespace) -> Callable[[], None]:
    """pidiff_jax: only the trainable tree is differentiated; it and the optimizer's state are donated."""
    import jax
    import jax.numpy as jnp
    import optax

    from pidiff_jax.convert.unet import split_identity
    from pidiff_jax.optim.rules import merge

    unet, mapper, params, inputs = our_unet(args)
    base, identity = split_identity(params["unet"])
    trainable = {"unet": identity, "mapper": params["mapper"]}
    del params
    optimizer = optax.adamw(LEARNING_RATE)
    noise = jax.random.normal(jax.random.key(1), inputs["noisy_latents"].shape)

    def loss(trainable, frozen, noisy_latents, timesteps, text, wplus):
        params = merge(trainable, frozen)
        tokens = mapper.apply({"params": params["mapper"]}, wplus)
        prediction = unet.apply({"params": params["unet"]}, noisy_latents, timesteps, text, tokens)
        return jnp.square(prediction - noise).mean()

    @jax.jit(donate_argnums=0)
    def step(state, frozen, inputs):
        trainable, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(trainable, frozen, **inputs)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, trainable)
        return (optax.apply_updates(trainable, updates), optimizer_state), value

    state = (trainable, optimizer.init(trainable))
    frozen = {"unet": base}

    def run() -> None:
        nonlocal state
        state, value = step(state, frozen, inputs)
        jax.block_until_ready((state, value))

    return run


if __name__ == "__main__":
    main("train_step", {"pytorch": pytorch, "ours": ours})
