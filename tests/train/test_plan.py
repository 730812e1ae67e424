"""A plan knows everything about a training run and allocates nothing, however large the model."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

from pidiff_jax.convert.clip_tokenizer import word_vocabulary, write_tokenizer
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import from_first_process, shard_batch
from pidiff_jax.train.build import loop_settings
from pidiff_jax.train.loop import TrainingRun
from pidiff_jax.train.plan import make_plan
from tests.train.tiny_training import make_batch, make_config, make_experiment

ROOT = Path(__file__).parents[2]
PLAN_IT = """
import json, sys, time
from pathlib import Path
import jax
from experiments import ffhq
from pidiff_jax.runs.build import build_experiment
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.build import loop_settings
from pidiff_jax.train.plan import make_plan
from pidiff_jax.worlds import open_world

config = ffhq.get_config()
config.base.path = sys.argv[1]
world = open_world(config)
world.check = lambda: None  # weights and data are not there
started = time.process_time()
settings = loop_settings(config)
plan = make_plan(build_experiment(config, world), settings, make_mesh(settings.mesh))
leaves = jax.tree.leaves((plan.state, plan.frozen))
print(json.dumps({
    "seconds": time.process_time() - started,
    "peak_gb": int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024 / 1e9,
    "parameters": sum(x.size for x in jax.tree.leaves((plan.state.trainable, plan.frozen))),
    "trainable": sum(x.size for x in jax.tree.leaves(plan.state.trainable)),
    "all_structs": all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves),
    "arrays": len(jax.live_arrays()),
    "latents": plan.experiment.record["latent_mean"].shape,
}))
"""


@pytest.fixture(scope="module")
def plan():
    settings = loop_settings(make_config())
    return make_plan(make_experiment(), settings, make_mesh(settings.mesh))


def test_arrays_are_placed_just_as_it_was_planned(plan):
    run = TrainingRun(plan, plan.experiment.load())
    described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
    assert described(run.state) == described(plan.state)
    assert described(run.frozen) == described(plan.frozen)


def test_the_step_that_it_compiles_takes_what_is_placed(plan):
    run = TrainingRun(plan, plan.experiment.load())
    step = plan.compile_step()
    batch, due_step = shard_batch(make_batch(0), plan.mesh), from_first_process(0.0, plan.mesh)
    state, metrics = step(run.state, run.frozen, batch, due_step)
    assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))


def test_data_of_another_size_than_the_model_was_made_for_are_planned_for(plan):
    record = {"latents": np.zeros((8, 8, 2), np.float32), "wplus": np.zeros(8, np.float32)}
    shapes = plan.compile_step(record).args_info[0][2]
    assert shapes["latents"].shape == (8, 8, 8, 2)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> Path:
    """Configs and tokenizer of Stable Diffusion 1.5, as diffusers writes them, without any weights."""
    folder = tmp_path_factory.mktemp("sd15")
    vocabulary, merges = word_vocabulary(["photo"])
    write_tokenizer(folder / "tokenizer", vocabulary, merges, max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        hidden_act="quick_gelu", bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    text.save_pretrained(folder / "text_encoder")
    import torch

    with torch.device("meta"):
        UNet2DConditionModel(cross_attention_dim=768, sample_size=64).save_config(folder / "unet")
        AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).save_config(folder / "vae")  # fmt: skip
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_config(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_the_plan_of_the_main_job_at_its_true_size_takes_neither_a_minute_nor_a_gigabyte(stable_diffusion):
    command = [sys.executable, "-c", PLAN_IT, str(stable_diffusion)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["all_structs"] and found["arrays"] < 10
    assert found["parameters"] > 1_000_000_000 * 0.9 and found["latents"] == [64, 64, 4]
    assert 20_000_000 < found["trainable"] < 60_000_000
    assert found["peak_gb"] < 1.0
    assert found["seconds"] < 60  # of processor time, which other programs on the machine don't change
