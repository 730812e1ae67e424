"""A pipeline of a few thousand random parameters, on one device: pictures of 16 x 16 pixels, W+ codes of five layers."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pidiff_jax.convert.clip_tokenizer import tokenize, word_tokenizer
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.shapes import text_encoder_shapes, vae_shapes
from pidiff_jax.models.text_conditioning import ClipConditioner
from pidiff_jax.models.vae import AutoencoderKL, VAESpec
from pidiff_jax.paths import flatten
from pidiff_jax.pipeline.pipeline import Pipeline
from pidiff_jax.runs.saved_run import SavedRun
from pidiff_jax.sampling.components import Components
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.worlds.portraits.world import PortraitsWorld
from tests.models.tiny_unet import CONTEXT_DIM, random_params
from tests.sampling.test_generate import tiny_pipeline as tiny_components

WORDS = ("a", "person", "in", "red", "blue", "shirt")
SIZE_PX, LATENT_PX, LAYERS, WIDTH, TEXT_LENGTH = 16, 8, 5, 8, 8


@functools.cache
def components_and_params() -> tuple[Components, dict[str, Any]]:
    """As of other tests, with a tokenizer that has words and a VAE that halves the resolution."""
    components, params = tiny_components()
    tokenizer = word_tokenizer(WORDS, TEXT_LENGTH)
    text = ClipText(
        ClipTextSpec(len(tokenizer), width=CONTEXT_DIM, num_layers=1, num_heads=2, mlp_width=16, max_length=TEXT_LENGTH)
    )
    vae = AutoencoderKL(VAESpec((8, 8), layers_per_block=1, norm_num_groups=4, mid_attention=False))
    shapes = nn.meta.unbox({"text_encoder": text_encoder_shapes(text), "vae": vae_shapes(vae)})
    components = replace(
        components, conditioner=ClipConditioner(text), vae=vae, prediction_type="v", latent_size=(LATENT_PX, LATENT_PX),
        tokenizer=tokenizer, null_text_ids=tuple(map(int, tokenize(tokenizer, [""])[0])),
    )  # fmt: skip
    return components, params | {name: random_params(tree) for name, tree in shapes.items()}


SAMPLING = {"num_steps": 2, "guidance_scale": 2.0, "identity_scale": 1.0, "identity_start": 0.0}


def make_pipeline(*, mesh: Mesh | None = None, params: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    """The pipeline of a run that draws in two steps. params: others than the usual ones."""
    components, own = components_and_params()
    params = own if params is None else params
    run = SavedRun(
        folder=Path("runs/tiny"),
        config=ConfigDict({"sampling": SAMPLING, "base": {"path": ""}}),
        world=PortraitsWorld(ConfigDict({"base": {"path": ""}})),
        components=components,
        params=params,
        mesh=make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh,
        reports=(),
        parameter_table="",
        trained=frozenset(path for path in flatten(params) if path.startswith("mapper/") or "_id/" in path),
        facts={"num_steps": 7, "versions": {"jax": jax.__version__}, "fingerprints": {"base": "0"}},
    )  # fmt: skip
    return Pipeline(run, **options)


@functools.cache
def shared_pipeline() -> Pipeline:
    """One for all tests of a process, so that it compiles once."""
    return make_pipeline()


def draw(*arguments: Any, **options: Any):
    """What the shared pipeline draws, in silence."""
    return shared_pipeline()(*arguments, show_progress=False, **options)


def codes(count: int, seed: int = 0) -> np.ndarray:
    """W+ codes of people."""
    return np.random.default_rng(seed).standard_normal((count, LAYERS, WIDTH)).astype(np.float32)


def picture(seed: int = 0, size: int = SIZE_PX) -> np.ndarray:
    """A picture of noise, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
