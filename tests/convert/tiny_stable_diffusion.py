"""Tiny pipelines of diffusers with Stable Diffusion's own proportions, so that a single file can tell their sizes."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pidiff_jax.convert.clip_tokenizer import load_tokenizer, word_vocabulary, write_tokenizer

WORDS, TEXT_LENGTH = ["a", "photo", "of", "person"], 12


def write_words(folder: Path) -> Path:
    vocabulary, merges = word_vocabulary(WORDS)
    write_tokenizer(folder, vocabulary, merges, max_length=TEXT_LENGTH)
    return folder


def tiny_pipeline(version: str, tokenizer: Path) -> StableDiffusionPipeline:
    """Stable Diffusion "1.x" (eight heads, convolutions, CLIP) or "2.x" (heads of 64, linear, OpenCLIP, v), random."""
    torch.manual_seed(0)
    words, second = load_tokenizer(tokenizer), version == "2.x"
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=words.model_max_length, hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(64, 128) if second else (32, 64), layers_per_block=1, cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2) if second else 8, use_linear_projection=second, sample_size=96 if second else 64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction" if second else "epsilon",
    )  # fmt: skip
    encoder = CLIPTextModel(text)
    with torch.no_grad():  # norms and biases that do something
        for parameter in [*unet.parameters(), *vae.parameters(), *encoder.parameters()]:
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
