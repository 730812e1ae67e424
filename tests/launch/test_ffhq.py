"""The main job, end to end, on a tiny folder of diffusers' real layout and on records of a real photograph."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from data_pipeline.prepare.networks import load_encoders
from experiments import ffhq
from pidiff_jax.convert.clip_tokenizer import load_tokenizer, word_vocabulary, write_tokenizer
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.runs.saved_run import open_run
from pidiff_jax.runs.training import build_parts
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.build import loop_settings
from tests.data_pipeline import astronaut
from tests.launch.commands import call, call_script
from tests.launch.recorded_config import RecordedConfig

TEXT_LENGTH = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A Stable Diffusion 1.x pipeline with random weights, saved in shards."""
    torch.manual_seed(0)
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    vocabulary, merges = word_vocabulary(sorted(set(astronaut.CAPTION.split())))
    write_tokenizer(tokenizer, vocabulary, merges, max_length=TEXT_LENGTH)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, sample_size=8,
    )  # fmt: skip
    vae = TorchAutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=load_tokenizer(tokenizer), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(path, max_shard_size="40KB")
    assert len(list((path / "unet").glob("*-of-*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return astronaut.write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def data(base, photographs, tmp_path_factory) -> Path:
    return astronaut.write_records(base, photographs, tmp_path_factory.mktemp("data"), size_px=64)


def train(workdir: Path, **changes) -> CompletedProcess[str]:
    settings = {"num_steps": 4, "batch_size": 2, "checkpoint_every_steps": 2, "validate_every_steps": 2}
    settings |= {"sampling__num_steps": 2}
    settings |= {f"groups__{group}__warmup_steps": 1 for group in ("identity", "mapper")} | changes
    flags = ["--config=experiments/ffhq.py", f"--workdir={workdir}"]
    flags += [f"--config.{name.replace('__', '.')}={value}" for name, value in settings.items()]
    return call(*flags, JAX_PLATFORMS="cpu")


def report(workdir: Path) -> dict[int, dict]:
    lines = (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()
    merged: dict[int, dict] = {}
    for entry in map(json.loads, lines):
        merged.setdefault(entry["step"], {}).update(entry)
    return merged


def test_it_trains_saves_and_after_an_interruption_goes_on_as_if_there_had_been_none(base, data, tmp_path):
    run, paths = tmp_path / "run", {"base__path": base, "data__path": data, "log_every_steps": 1}
    first = train(run, **paths)
    assert first.returncode == 0, first.stderr
    assert {"2", "4"} <= {path.name for path in (run / "checkpoints").iterdir()}
    whole = report(run)
    assert sorted(whole) == [1, 2, 3, 4]
    assert all(np.isfinite(entry["loss"]) for entry in whole.values())
    assert "validation/loss/denoising" in whole[4]

    with Image.open(run / "samples.png") as picture:
        assert picture.width > 4 * 190 and picture.height > 2 * 190
    assert "has no judges" in (run / "report.html").read_text(encoding="utf-8") and not (run / "metrics.json").exists()

    (run / "complete.json").unlink()  # what a run leaves that was killed after step 2
    shutil.rmtree(run / "checkpoints" / "4")
    (run / "history.jsonl").unlink()
    second = train(run, **paths)
    assert second.returncode == 0, second.stderr
    assert "resuming from step 2 of 4" in second.stdout
    resumed = report(run)
    assert sorted(resumed) == [3, 4]
    for step in (3, 4):
        assert {n: v for n, v in resumed[step].items() if "second" not in n} == {
            n: v for n, v in whole[step].items() if "second" not in n
        }

    third = train(run, **paths)
    assert third.returncode == 0
    assert "this run is complete" in third.stdout

    opened = open_run(run, mesh=make_mesh(devices=jax.devices()[:1]))
    assert opened.facts["num_steps"] == 4 and opened.facts["seconds_training"] > 0
    output = Pipeline(opened)(
        ["a photo", "a person"], np.ones((18, 512)), seed=2, output_type="np", show_progress=False
    )
    assert output.images.shape == (2, 64, 64, 3) and output.images.std() > 0
    np.testing.assert_allclose(output.attention.sum((1, 2, 3)), 1.0, rtol=1e-3)
    for options, message in (
        ({"step": 3}, "the checkpoint of step 3"),
        ({"overrides": {"sampling.nun_steps": 3}}, "got 'sampling.nun_steps'; did you mean 'sampling.num_steps'?"),
        ({"overrides": {"sampling.num_steps": "many"}}, "expected values of the config's own types"),
        (
            {"overrides": {"sampling.num_steps": 0}},
            "config.sampling.num_steps: expected 1 to 1000 sampling steps, got 0",
        ),
        (
            {"overrides": {"mapper.tokens_per_group": 2}},
            "expected the parameters that the config trains, .* mapper/proj_0",
        ),
        ({"overrides": {"base.path": base.parent}}, "base model: expected a Stable Diffusion folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_run(run, **options)


@pytest.mark.full
def test_it_trains_in_half_precision_too(base, data, tmp_path):
    result = train(tmp_path / "run", base__path=base, data__path=data, num_steps=1, compute_dtype="bfloat16")
    assert result.returncode == 0, result.stderr
    assert np.isfinite(report(tmp_path / "run")[1]["loss"])


def test_every_key_of_the_config_is_read(base, data):
    config = ffhq.get_config()
    config.base.path, config.data.path, config.batch_size = str(base), str(data), 2
    recorded = RecordedConfig(config)
    loop_settings(recorded)
    build_parts(recorded)
    assert recorded.unread() == []


def test_the_vae_may_be_there_as_a_variant_only(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    for file in (tmp_path / "base" / "vae").glob("*model.safetensors*"):  # the weights, or the index of their shards
        stem, _, rest = file.name.rpartition(".")
        file.rename(file.with_name(f"{stem}.fp16.{rest}"))
    for variant in (None, "fp16"):
        with pytest.raises(FileNotFoundError, match="e4e.safetensors"):  # the VAE is read, then comes what isn't there
            load_encoders(tmp_path / "base", tmp_path / "e4e.safetensors", variant=variant)
    with pytest.raises(
        FileNotFoundError, match="ema.*variants fp16: choose one.* of launch.prepare and launch.convert"
    ):
        load_encoders(tmp_path / "base", tmp_path / "e4e.safetensors", variant="ema")


def test_photographs_without_networks_are_refused_in_one_line(photographs, tmp_path):
    flags = [f"--photographs={photographs}", f"--base={tmp_path}", f"--e4e={tmp_path / 'e4e.pt'}"]
    result = call(*flags, f"--output={tmp_path / 'records'}", command="prepare")
    assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "expected a Stable Diffusion folder" in result.stderr and not (tmp_path / "records").exists()


def test_ctrl_c_ends_preparing_in_one_line(tmp_path):
    script = """
import runpy
from data_pipeline.prepare import networks

def interrupted(*_):
    raise KeyboardInterrupt

networks.check_networks = interrupted
runpy.run_module("launch.prepare", {}, "__main__")
"""
    flags = ["--photographs=photographs", "--base=base", "--e4e=e4e.pt", f"--output={tmp_path / 'records'}"]
    result = call_script(script, *flags)
    assert result.returncode == 130
    assert result.stderr == "interrupted; no records were written, run it again\n"


def test_without_weights_and_data_it_says_in_one_line_each_what_is_missing(tmp_path):
    result = train(tmp_path / "run", base__path=tmp_path / "sd15", data__path=tmp_path / "ffhq")
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "base model" in lines[0] and str(tmp_path / "sd15") in lines[0] and "--config.base.path=" in lines[0]
    assert "data" in lines[1] and str(tmp_path / "ffhq") in lines[1] and "--config.data.path=" in lines[1]
