"""A folder written by diffusers gives the same networks here; a folder that lacks something says what."""

import copy
import dataclasses
import importlib
import inspect
import json
import pkgutil
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from diffusers import DDIMScheduler, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from flax import linen as nn
from transformers import CLIPTextConfig, CLIPTextModel

from pidiff_jax.convert.adapter import to_ip_adapter
from pidiff_jax.convert.clip_tokenizer import load_tokenizer, tokenize, word_vocabulary, write_tokenizer
from pidiff_jax.convert.diffusers_config import schedule_settings
from pidiff_jax.convert.diffusers_folder import check_files, noise_schedule, open_diffusers_folder
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
from pidiff_jax.convert.unet import split_identity
from pidiff_jax.models.attention import IdentityAttentionSpec
from pidiff_jax.models.clip import ClipText
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes
from pidiff_jax.models.text_conditioning import TextConditioning
from pidiff_jax.models.unet import UNet
from pidiff_jax.models.vae import AutoencoderKL
from pidiff_jax.optim.rules import merge
from pidiff_jax.paths import flatten
from pidiff_jax.sampling.generate import Sampling, generate, generate_latents
from pidiff_jax.worlds.photographs.world import folder_components
from tests.models.tiny_unet import random_params, unet_shapes

CAPTIONS = ["a photo of a person", "a red wall"]
STABLE_DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
SCHEDULERS = {
    "sd1": {"prediction_type": "epsilon", "timestep_spacing": "leading"},
    "sd2_trailing": {
        "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
    },
}  # fmt: skip
# Those that add and take away noise by the betas of their config; all others of diffusers are of another process.
WITH_DDPM_BETAS = {
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip


def scheduler_classes() -> dict[str, type]:
    """Every scheduler of the installed diffusers, apart from two that need torchsde even to be looked at."""
    found = {}
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        if module.name.endswith(("scheduling_cosine_dpmsolver_multistep", "scheduling_dpmsolver_sde")):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if isinstance(kind, type) and issubclass(kind, SchedulerMixin) and kind.__module__ == module.name:
                found[name] = kind
    return found


SCHEDULER_CLASSES = {name: kind for name, kind in scheduler_classes().items() if name != "SchedulerMixin"}
MAPPER = MapperSpec(groups=((0, 1), (1, 3), (3, 5), (5, 6)), wplus_dim=10, token_dim=16)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> StableDiffusionPipeline:
    """A tiny pipeline of Stable Diffusion's layout with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary, merges = word_vocabulary(["a", "photo", "of", "person", "red", "wall"])
    write_tokenizer(folder, vocabulary, merges, max_length=12)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, sample_size=8,
    )  # fmt: skip
    vae = TorchAutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    with torch.no_grad():  # norms and biases that do something
        for parameter in [*unet.parameters(), *vae.parameters()]:
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, **SCHEDULERS["sd2_trailing"])
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(text).eval(), tokenizer=load_tokenizer(folder), unet=unet.eval(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    """The pipeline saved in shards."""
    path = tmp_path_factory.mktemp("sharded")
    pipeline.save_pretrained(path, max_shard_size="40KB")
    for part in ("unet", "vae"):
        assert len(list((path / part).glob("*-of-*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def opened(folder):
    return open_diffusers_folder(folder)


@pytest.fixture(scope="module")
def params(opened):
    return opened.load()


def with_branch(opened):
    """The folder's UNet with an identity branch, as its spec."""
    return dataclasses.replace(opened.unet_spec, identity=IdentityAttentionSpec(token_dim=16))


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def assert_close(ours, theirs: torch.Tensor):
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_sharded_folder_gives_the_same_outputs(pipeline, opened, params):
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 8, 8, 4)).astype(np.float32)
    pixels = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    text_ids = tokenize(opened.tokenizer, CAPTIONS)
    expected_ids = pipeline.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    np.testing.assert_array_equal(text_ids, expected_ids.numpy())

    text_embeds = jax.jit(ClipText(opened.text_spec).apply)({"params": params["text_encoder"]}, text_ids)
    expected_embeds = pipeline.text_encoder(expected_ids).last_hidden_state
    assert_close(text_embeds, expected_embeds)

    times = np.array([3, 801])
    text = TextConditioning(text_embeds)
    prediction = jax.jit(UNet(opened.unet_spec).apply)({"params": params["unet"]}, latents, times, text)
    assert_close(prediction, pipeline.unet(nchw(latents), torch.tensor(times), expected_embeds).sample)

    vae, own = AutoencoderKL(opened.vae_spec), {"params": params["vae"]}
    mean, _ = jax.jit(lambda p, x: vae.apply(p, x, method="encode"))(own, pixels)
    assert_close(mean, pipeline.vae.encode(nchw(pixels)).latent_dist.mean)
    decoded = jax.jit(lambda p, z: vae.apply(p, z, method="decode"))(own, latents)
    assert_close(decoded, pipeline.vae.decode(nchw(latents)).sample)


def rewritten(opened, params, path: Path, **options) -> Path:
    write_diffusers_folder(
        path, params, unet_spec=opened.unet_spec, vae_spec=opened.vae_spec, text_spec=opened.text_spec,
        tokenizer=opened.tokenizer, schedule=opened.schedule, latent_size=opened.latent_size, **options,
    )  # fmt: skip
    return path


def test_a_folder_written_here_is_read_again_as_it_was_here_and_by_diffusers(opened, params, pipeline, tmp_path):
    path = rewritten(opened, params, tmp_path / "new" / "folder")
    again = open_diffusers_folder(path)
    for name in ("unet_spec", "vae_spec", "text_spec", "schedule", "latent_size"):
        assert getattr(again, name) == getattr(opened, name), name
    assert again.tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    loaded, expected = flatten(again.load()), flatten(params)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], value) for name, value in expected.items())
    theirs = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        tensors, wanted = getattr(theirs, part).state_dict(), getattr(pipeline, part).state_dict()
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], value) for name, value in wanted.items()), part
    torch.testing.assert_close(theirs.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert theirs.tokenizer(CAPTIONS).input_ids == pipeline.tokenizer(CAPTIONS).input_ids
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_written_in_half_precision_without_the_identity_and_over_nothing(opened, params, tmp_path):
    identity = {**params, "unet": random_params(unet_shapes(with_branch(opened)))}
    named = dataclasses.replace(opened, unet_spec=with_branch(opened))
    path = rewritten(named, identity, tmp_path / "folder", dtype=np.float16)
    assert open_diffusers_folder(path).load(None)["unet"].keys() == params["unet"].keys()
    assert {x.dtype for x in flatten(open_diffusers_folder(path).load(None)).values()} == {np.dtype(np.float16)}
    before = sorted(path.rglob("*"))
    with pytest.raises(FileExistsError, match="expected nothing at .*folder"):
        rewritten(opened, params, path)
    assert sorted(path.rglob("*")) == before
    with pytest.raises(ValueError, match="conv_in"):
        rewritten(opened, {**params, "unet": {}}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_components_have_the_schedule_of_the_folder(pipeline, opened):
    components = folder_components(opened)
    assert components.noise_shape == (8, 8, 4)
    np.testing.assert_allclose(components.schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod, rtol=0, atol=1e-6)
    assert components.prediction_type == "v"
    assert (components.timestep_spacing, components.steps_offset, components.set_alpha_to_one) == ("trailing", 1, False)
    assert list(components.null_text_ids) == pipeline.tokenizer("", padding="max_length")["input_ids"]


def draw_both(pipeline, opened, params, scheduler, sampling, draw=generate_latents, identity=None):
    """What diffusers' pipeline draws, and what `draw` does (with identity's map), from the same noise.

    identity: (UNet parameters with an identity branch, mapper parameters, W+ code (1, l, d), scale), or None.
    """
    noise = np.random.default_rng(7).standard_normal((2, 8, 8, 4)).astype(np.float32)
    pipeline, schedule = copy.deepcopy(pipeline), DDIMScheduler(**STABLE_DIFFUSION, **SCHEDULERS[scheduler])
    pipeline.scheduler = schedule
    pipeline.set_progress_bar_config(disable=True)
    components = folder_components(dataclasses.replace(opened, schedule=schedule_settings(schedule.config)))
    arguments, kwargs = (), {}
    if identity is not None:
        components = components.with_identity(IdentityAttentionSpec(token_dim=16), MAPPER)
        unet, mapper, wplus, scale = identity
        params = params | {"unet": unet, "mapper": mapper}
        arguments = (np.repeat(wplus, 2, axis=0), np.float32(scale))
        adapter = to_ip_adapter(params, with_branch(opened), MAPPER)
        groups = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in adapter.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = torch.from_numpy(tensor)
        pipeline.unet._load_ip_adapter_weights([groups], low_cpu_mem_usage=False)
        pipeline.set_ip_adapter_scale(scale)
        code = torch.from_numpy(wplus).reshape(1, 1, -1)
        kwargs["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(code), code])]
    theirs = pipeline(
        CAPTIONS, latents=nchw(noise), num_inference_steps=sampling.num_steps, guidance_scale=sampling.guidance_scale,
        guidance_rescale=sampling.guidance_rescale, output_type="np" if draw is generate else "latent", **kwargs,
    ).images  # fmt: skip
    theirs = theirs if draw is generate else theirs.numpy().transpose(0, 2, 3, 1)
    run = jax.jit(lambda *args: draw(components, *args, sampling=sampling))
    return theirs, run(params, noise, tokenize(opened.tokenizer, CAPTIONS), *arguments)


@pytest.mark.parametrize(("scheduler", "rescale"), [("sd1", 0.0), ("sd2_trailing", 0.7)])
def test_twenty_steps_draw_what_diffusers_pipeline_draws(pipeline, opened, params, scheduler, rescale):
    sampling = Sampling(num_steps=20, guidance_scale=7.5, guidance_rescale=rescale)
    expected, (latents, strength) = draw_both(pipeline, opened, params, scheduler, sampling)
    assert expected.std() > 0.3
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-3)
    assert np.abs(strength).max() == 0


@pytest.mark.parametrize(
    ("scheduler", "draw"), [("sd1", generate), ("sd1", generate_latents), ("sd2_trailing", generate)]
)
def test_twenty_steps_with_identity_draw_what_diffusers_draws_with_our_ip_adapter(
    pipeline, opened, params, scheduler, draw
):
    sampling = Sampling(num_steps=20, guidance_scale=7.5)
    branch = random_params(split_identity(unet_shapes(with_branch(opened)))[1], seed=3)
    unet = merge(params["unet"], branch)
    mapper = random_params(nn.meta.unbox(mapper_shapes(IdentityMapper(MAPPER))), seed=4)
    wplus = np.random.default_rng(5).standard_normal((1, 6, 10)).astype(np.float32)
    expected, (drawn, strength) = draw_both(
        pipeline, opened, params, scheduler, sampling, draw, (unet, mapper, wplus, 0.6)
    )
    assert expected.std() > 0.05
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(strength.sum((1, 2)), 1.0, rtol=1e-4)


def test_whole_files_and_torch_files_hold_the_same(pipeline, params, tmp_path):
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "torch", safe_serialization=False)
    (text_file,) = (tmp_path / "torch" / "text_encoder").glob("*model*")
    text_file.unlink()  # transformers 5 no longer writes PyTorch files; older folders have this one
    torch.save(pipeline.text_encoder.state_dict(), tmp_path / "torch" / "text_encoder" / "pytorch_model.bin")
    assert not list((tmp_path / "torch").rglob("*.safetensors"))
    for name in ("whole", "torch"):
        jax.tree.map(np.testing.assert_array_equal, open_diffusers_folder(tmp_path / name).load(), params)


def test_half_precision_variant_is_read_when_asked_for_or_the_only_one(pipeline, params, tmp_path):
    for part in ("unet", "vae", "text_encoder"):
        getattr(pipeline, part).half()
    try:
        pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="40KB")
    finally:
        for part in ("unet", "vae", "text_encoder"):
            getattr(pipeline, part).float()
    (tmp_path / "vae" / "diffusion_pytorch_model.ema.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"vae/diff.*variants ema, fp16: choose one.*--config.base.variant=ema"):
        open_diffusers_folder(tmp_path).load()
    opened = open_diffusers_folder(tmp_path, variant="fp16")
    half, full = opened.load(dtype=None), flatten(params)
    (tmp_path / "vae" / "diffusion_pytorch_model.ema.safetensors").unlink()
    single = open_diffusers_folder(tmp_path).load()  # the only variant there is
    with pytest.raises(FileNotFoundError, match=r"\.ema\.safetensors \(there are the variants fp16: choose one"):
        check_files(tmp_path, "ema")
    for path, leaf in flatten(half).items():
        assert leaf.dtype == np.float16
        np.testing.assert_array_equal(leaf, full[path].astype(np.float16))
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {np.dtype(np.float32)}


def test_every_missing_file_is_listed_in_one_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    shard = next((folder / "vae").glob("*-00002-of-*")).name
    gone = ["model_index.json", "vae/config.json", f"vae/{shard}", "scheduler/scheduler_config.json"]
    for name in [*gone, "text_encoder/model.safetensors.index.json"]:
        (tmp_path / "broken" / name).unlink()
    shutil.rmtree(tmp_path / "broken" / "tokenizer")
    with pytest.raises(FileNotFoundError) as error:
        check_files(tmp_path / "broken")
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in [*gone, "tokenizer/vocab.json", "text_encoder/model.safetensors"])
    assert "unet/" not in message


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2"),
        ("unet/config.json", {"in_channels": 9}, "unet in_channels 4 as the VAE's latent_channels, got 9"),
        ("unet/config.json", {"dual_cross_attention": True}, "dual_cross_attention"),
        ("unet/config.json", {"layers_per_block": 2}, "json: the weights don't fit this model: missing 'down_blocks.0"),
        ("vae/config.json", {"layers_per_block": 2}, "json: the weights don't fit this model: missing 'decoder."),
        (
            "text_encoder/config.json",
            {"vocab_size": 540},
            "model.safetensors.index.json: the weights don't fit this model",
        ),
        ("text_encoder/config.json", {"vocab_size": 528}, "a row for each of 529 tokens, got vocab_size 528"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "model_max_length 12 as the text encoder's"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, tmp_path, file, changes, message):
    shutil.copytree(folder, tmp_path / "broken")
    edit_json(tmp_path / "broken" / file, **changes)
    with pytest.raises(ValueError) as error:
        open_diffusers_folder(tmp_path / "broken").load()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parts_that_are_not_there_and_rows_without_a_token_do_no_harm(folder, opened, params, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "notes.json").write_text("{")
    nothing = [None, None]
    edit_json(
        tmp_path / "other" / "model_index.json", image_encoder=nothing, controlnet=nothing, safety_checker=nothing
    )
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    edit_json(tmp_path / "other" / "text_encoder" / "config.json", vocab_size=config["vocab_size"] + 3)
    rows = dataclasses.replace(opened.text_spec, vocab_size=config["vocab_size"] + 3)
    assert open_diffusers_folder(tmp_path / "other").text_spec == rows


@pytest.mark.filterwarnings("ignore")  # of deprecated schedulers
@pytest.mark.parametrize("name", sorted(SCHEDULER_CLASSES))
def test_the_defaults_of_every_scheduler_are_read_or_refused_by_name(name):
    """Diffusers itself says what is right: the alphas of a DDPM, or a scheduler that is of another kind."""
    scheduler = SCHEDULER_CLASSES[name]
    config = {"_class_name": name} | {
        key: value.default
        for key, value in inspect.signature(scheduler.__init__).parameters.items()
        if value.default is not inspect.Parameter.empty
    }
    if name not in WITH_DDPM_BETAS:
        with pytest.raises(ValueError, match=f"got {name}, whose noise is another one"):
            schedule_settings(config)
        return
    own = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    settings = schedule_settings(config)
    assert (settings.prediction_type, settings.num_train_timesteps) == ("eps", 1000)
    assert settings.timestep_spacing == config.get("timestep_spacing", "leading")
    np.testing.assert_allclose(
        noise_schedule(settings).alphas_cumprod, DDIMScheduler(**own).alphas_cumprod, rtol=0, atol=1e-6
    )
    assert schedule_settings({key: value for key, value in config.items() if key not in own}) == settings
    with pytest.raises(ValueError, match="trained_betas"):
        schedule_settings(config | {"trained_betas": [0.1]})
