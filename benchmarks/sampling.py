"""A trajectory of Stable Diffusion 1.5 with an identity of four tokens, ours beside diffusers' (float32, DDIM, guidance).

python benchmarks/sampling.py --rounds=3                        # the real size: 64x64 latents, 4 steps
python benchmarks/sampling.py --rounds=1 --size=16 --steps=2    # a short look

From the texts' ids and the image's embedding to the latents, without the VAE: `CompiledSampler.draw` beside
`StableDiffusionPipeline` with its IP-Adapter, both with the same random weights. Shows steps per second of both, the ratios of
time, processor time and peak memory, and the largest difference of the latents. The first run of each side isn't counted;
ours compiles in it. A run also encodes the texts once, which is little beside a step.
"""

import argparse
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from full_size import IMAGE_EMBEDDING, TEXT_TOKENS, TEXT_WIDTH, torch_unet
from side_by_side import main

GUIDANCE_SCALE = 7.5
NUM_WORDS, NUM_IDENTITY_TOKENS = 49408, 4
PROJECTION = "encoder_hid_proj.image_projection_layers.0"


def pytorch(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    """diffusers' pipeline with IP-Adapter processors."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=NUM_WORDS, hidden_size=TEXT_WIDTH, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )  # fmt: skip
    unet, text_encoder = torch_unet(args)[0].eval(), CLIPTextModel(config).eval().requires_grad_(False)
    for model in (unet, text_encoder):
        for name, parameter in model.named_parameters():
            parameter.data.copy_(torch.from_numpy(random(name.removeprefix("text_model."), parameter.shape)))
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    given = {name: torch.from_numpy(array) for name, array in inputs(args).items()}
    image = given["image"][:, None]

    def run() -> np.ndarray:
        with torch.inference_mode():
            text, null = (text_encoder(given[name]).last_hidden_state for name in ("text_ids", "null_ids"))
            latents = pipeline(
                prompt_embeds=text, negative_prompt_embeds=null, latents=given["noise"].permute(0, 3, 1, 2).contiguous(),
                ip_adapter_image_embeds=[torch.cat([torch.zeros_like(image), image])], num_inference_steps=args.steps,
                guidance_scale=GUIDANCE_SCALE, output_type="latent", height=8 * args.size, width=8 * args.size,
            ).images  # fmt: skip
        return latents.permute(0, 2, 3, 1).numpy()

    return run


def ours(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    """pidiff_jax, a step a call, as `Pipeline` draws. The mapper: linear, of four tokens, as an IP-Adapter's projection."""
    from flax import linen as nn

    from pidiff_jax.convert.clip import clip_table
    from pidiff_jax.convert.table import derive_table
    from pidiff_jax.convert.unet import split_identity, unet_table
    from pidiff_jax.diffusion.schedule import NoiseSchedule
    from pidiff_jax.models.clip import ClipText, ClipTextSpec
    from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
    from pidiff_jax.models.shapes import mapper_shapes, unet_shapes
    from pidiff_jax.models.text_conditioning import ClipConditioner
    from pidiff_jax.models.unet import IdentityAttentionSpec, UNet, UNetSpec
    from pidiff_jax.models.vae import AutoencoderKL, VAESpec
    from pidiff_jax.sampling.compiled import CompiledSampler, Request
    from pidiff_jax.sampling.components import Components
    from pidiff_jax.sampling.generate import Sampling
    from pidiff_jax.sharding.mesh import make_mesh

    text_spec, spec = ClipTextSpec.sd15(), UNetSpec.sd15(IdentityAttentionSpec())
    unet = UNet(spec)
    mapper = IdentityMapper(MapperSpec(((0, 1),), IMAGE_EMBEDDING, tokens_per_group=NUM_IDENTITY_TOKENS))
    components = Components(
        unet, ClipConditioner(ClipText(text_spec)), AutoencoderKL(VAESpec.sd15()), mapper, NoiseSchedule.scaled_linear(),
        prediction_type="eps", null_text_ids=(0,) * TEXT_TOKENS, latent_size=(args.size, args.size),
        tokenizer=None,  # texts come as ids
        timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False,
    )  # fmt: skip
    branch = split_identity(nn.meta.unbox(unet_shapes(unet)))[1]
    projection = [(r"^proj\.0", f"{PROJECTION}.image_embeds"), ("^norm", f"{PROJECTION}.norm")]
    identity_table = derive_table(branch, [(r"\.to_(\w)_id\.", r".processor.to_\1_ip.0.")])
    params = {
        "unet": our_params([*unet_table(spec), *identity_table]),
        "text_encoder": our_params(clip_table(text_spec)),
        "mapper": our_params(derive_table(nn.meta.unbox(mapper_shapes(mapper)), projection)),
    }
    sampler, sampling = CompiledSampler(components, make_mesh()), Sampling(args.steps, GUIDANCE_SCALE)
    given = inputs(args)

    def run() -> np.ndarray:
        tokens = sampler.tokens(params, given["image"][:, None, None])
        request = Request(given["text_ids"], given["noise"], tokens, negative_ids=given["null_ids"])
        return np.asarray(sampler.draw(params, request, sampling, on_step=lambda done, total: None)[0])

    return run


def inputs(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Noise, texts' ids and the image's embedding, the same for both sides."""
    rng = np.random.default_rng(0)
    return {
        "noise": rng.standard_normal((args.batch, args.size, args.size, 4), np.float32),
        "image": rng.standard_normal((args.batch, IMAGE_EMBEDDING), np.float32),
        "text_ids": rng.integers(NUM_WORDS, size=(args.batch, TEXT_TOKENS)),
        "null_ids": rng.integers(NUM_WORDS, size=(args.batch, TEXT_TOKENS)),
    }


def random(name: str, shape: Sequence[int]) -> np.ndarray:
    """The parameter of a name and a shape of PyTorch's: whoever asks gets the same numbers."""
    if len(shape) == 1:
        return np.full(shape, name.endswith("weight"), np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(tuple(shape), np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)


def our_params(table: Sequence[Any]) -> dict[str, Any]:
    """The parameters of a table of conversion, made one by one."""
    import jax.numpy as jnp

    from pidiff_jax.paths import unflatten

    arrays = {}
    for entry in table:
        shape = entry.layout.to_foreign(np.broadcast_to(np.float32(0), entry.shape)).shape
        foreign = random(entry.foreign.removeprefix("text_model."), shape)
        arrays[entry.ours] = jnp.asarray(entry.layout.to_ours(foreign))
    return unflatten(arrays)


if __name__ == "__main__":
    main("sampling", {"pytorch": pytorch, "ours": ours}, steps=4)
