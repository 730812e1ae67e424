"""One forward pass of Stable Diffusion 1.5's UNet with an identity adapter, ours beside PyTorch's (float32).

python benchmarks/unet_forward.py --rounds=3
"""

import argparse
from collections.abc import Callable

from full_size import our_unet, torch_unet
from side_by_side import main


def pytorch(args: argparse.Namespace) -> Callable[[], None]:
    """diffusers with IP-Adapter processors."""
    import torch

    model, call, _ = torch_unet(args)

    def run() -> None:
        with torch.inference_mode():
            model(**call)

    return run


def ours(args: argparse.Namespace) -> Callable[[], None]:
    """pidiff_jax, compiled."""
    import jax

    unet, mapper, params, inputs = our_unet(args)

    @jax.jit
    def predict(params, noisy_latents, timesteps, text, wplus):
        tokens = mapper.apply({"params": params["mapper"]}, wplus)
        return unet.apply({"params": params["unet"]}, noisy_latents, timesteps, text, tokens)

    return lambda: jax.block_until_ready(predict(params, **inputs))


if __name__ == "__main__":
    main("unet_forward", {"pytorch": pytorch, "ours": ours})
