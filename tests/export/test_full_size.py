"""An adapter on a base of Stable Diffusion 1.5's size leaves for stock diffusers, on small pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from experiments import ffhq
from pidiff_jax.convert.clip_tokenizer import clip_tokenizer
from pidiff_jax.convert.files import read_metadata
from tests.data_pipeline import astronaut
from tests.export.tiny_run import save_run
from tests.launch.commands import ROOT

LATENT_SIZE = 16


def write_base(folder: Path) -> Path:
    """Stable Diffusion 1.5's networks with random weights; its pictures are of 128 pixels."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks),
        text_encoder=CLIPTextModel(text),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(cross_attention_dim=768, sample_size=LATENT_SIZE),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_stock_diffusers_draws_with_an_adapter_of_stable_diffusion_1_5(tmp_path):
    base, records = write_base(tmp_path / "base"), tmp_path / "data"
    records.mkdir()
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    config = ffhq.get_config()
    config.base.path = str(base)
    config.data.path = str(
        astronaut.write_records(base, astronaut.write_photographs(photographs), records, size_px=128)
    )
    config.sampling.num_steps = 4
    config.sampling.identity_start = 0.25
    run = save_run(tmp_path / "run", config)

    # On one device: the eight of these tests would each hold the model.
    command = [sys.executable, "-m", "launch.export", "--format=ip_adapter"]
    command += [f"--workdir={run}", f"--output={tmp_path / 'out'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert result.returncode == 0, result.stderr
    in_jax, in_torch = (float(line.rpartition(" ")[2]) for line in result.stdout.splitlines()[-2:])
    assert in_jax == 0.0 and in_torch <= 1e-3, result.stdout
    metadata = read_metadata(tmp_path / "out/ip_adapter.safetensors")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/ip-adapter"
    assert json.loads((base / "unet/config.json").read_text(encoding="utf-8"))["sample_size"] == LATENT_SIZE
