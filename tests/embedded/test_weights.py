"""The shipped weights: small, described, and of the shapes that the specs ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax import embedded, embedded_faces
from pidiff_jax.convert.files import read_metadata
from pidiff_jax.evaluation import portraits
from pidiff_jax.evaluation.portraits import NUM_CLASSES
from pidiff_jax.evaluation.scores import identity_similarity, retrieval_top1
from pidiff_jax.models.arcface import ArcFace
from pidiff_jax.models.e4e import E4eEncoder
from pidiff_jax.models.segmenter import Segmenter
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.paths import flatten
from pidiff_jax.train.build_portraits import components, init_autoencoder

PIXELS = jnp.zeros((1, embedded.RESOLUTION_PX, embedded.RESOLUTION_PX, 3))
WPLUS = (embedded.NUM_WPLUS_LAYERS, embedded.WPLUS_DIM)


def shapes_of(module: nn.Module, *inputs, **options):
    return nn.meta.unbox(jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **options), *inputs)["params"])


def expected() -> dict:
    """File -> the tree that it should hold."""
    c = components()
    side = embedded.RESOLUTION_PX // embedded.VAE.downsampling
    latents = jnp.zeros((1, side, side, embedded.VAE.latent_channels))
    context = jnp.zeros((1, embedded.TEXT_LENGTH, embedded.TOKEN_DIM))
    return {
        "vae": {"vae": shapes_of(c.vae, PIXELS, method=init_autoencoder)},
        "base": {
            "unet": shapes_of(c.unet, latents, jnp.zeros((1,)), context),
            "text_encoder": shapes_of(c.text_encoder, jnp.zeros((1, embedded.TEXT_LENGTH), jnp.int32)),
        },
        "wplus": {
            "encoder": shapes_of(E4eEncoder(embedded_faces.ENCODER), PIXELS),
            "synthesis": shapes_of(Synthesis(embedded_faces.STYLEGAN2), jnp.zeros((1, *WPLUS))),
            "latent_avg": jax.ShapeDtypeStruct(WPLUS, jnp.float32),
        },
        "recogniser": {"recogniser": shapes_of(ArcFace(embedded_faces.RECOGNISER), PIXELS)},
        "scenes": {"scenes": shapes_of(ArcFace(embedded_faces.scene_spec(sum(NUM_CLASSES))), PIXELS)},
        "segmenter": {"segmenter": shapes_of(Segmenter(embedded_faces.SEGMENTER), PIXELS)},
    }


def test_they_fit_their_networks():
    for name, tree in expected().items():
        loaded, wanted = flatten(embedded.load_weights(name)), flatten(tree)
        assert {path: x.shape for path, x in loaded.items()} == {path: x.shape for path, x in wanted.items()}, name
        assert all(np.isfinite(x).all() for x in loaded.values()), name


def test_they_take_16_mb_at_most_and_the_model_card_describes_every_file():
    files = sorted(embedded.WEIGHTS.glob("*.safetensors"))
    assert {path.stem for path in files} == set(expected())
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    card = (embedded.WEIGHTS / "MODEL_CARD.md").read_text()
    for path in files:
        assert f"`{path.name}`" in card
        assert "num_steps" in read_metadata(path)["model_card"]


def test_a_missing_file_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vae\.safetensors.*portraits_base\.py"):
        embedded.load_weights("vae", tmp_path)


@pytest.mark.slow
def test_wplus_codes_carry_the_person_into_another_photograph():
    people = portraits.held_out_people("validation", 48, embedded_faces.load_wplus_encoder())
    synthesis = Synthesis(embedded_faces.STYLEGAN2)
    params = {"params": embedded.load_weights("wplus")["synthesis"]}
    drawn = jax.jit(lambda wplus: jnp.clip(synthesis.apply(params, wplus) * 0.5 + 0.5, 0.0, 1.0))(people.wplus)
    recognise = portraits.load_judges().recogniser
    drawn, others = (np.asarray(recognise(pixels)) for pixels in (drawn, people.gallery))
    assert identity_similarity(drawn, others).mean() > 0.85
    assert retrieval_top1(drawn, others, np.arange(48)).mean() > 0.9
