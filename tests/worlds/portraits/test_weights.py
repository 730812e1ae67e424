"""The shipped weights: small, described, and of the shapes that the specs ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pidiff_jax.convert.files import read_metadata
from pidiff_jax.evaluation.scores import identity_similarity, retrieval_top1
from pidiff_jax.models.stylegan2 import Synthesis
from pidiff_jax.paths import flatten
from pidiff_jax.runs.build import build_experiment
from pidiff_jax.worlds import open_world
from pidiff_jax.worlds.portraits.judges import held_out_people, load_judges
from pidiff_jax.worlds.portraits.networks import STYLEGAN2
from pidiff_jax.worlds.portraits.sources import load_wplus_encoder
from pidiff_jax.worlds.portraits.weight_files import WEIGHTS, load_weights, save_weights
from tests.launch.experiments import get_config

MADE_BY = {
    "vae": ("portraits_base", "vae"), "base": ("portraits_base", "unet"), "wplus": ("portraits_wplus", None),
    "recogniser": ("portraits_judges", "recogniser"), "scenes": ("portraits_judges", "scenes"),
    "segmenter": ("portraits_judges", "segmenter"), "landmarks": ("portraits_judges", "landmarks"),
    "realism": ("portraits_judges", "realism"),
}  # fmt: skip


def expected(name: str) -> dict:
    """The tree that the file should hold: the parameters of the experiment that makes it."""
    config = get_config(*MADE_BY[name])
    return nn.meta.unbox(build_experiment(config, open_world(config)).shapes)


def test_they_fit_their_networks():
    for name in MADE_BY:
        loaded, wanted = flatten(load_weights(name)), flatten(expected(name))
        assert {path: x.shape for path, x in loaded.items()} == {path: x.shape for path, x in wanted.items()}, name
        assert all(np.isfinite(x).all() for x in loaded.values()), name


def test_they_take_16_mb_at_most_and_the_model_card_describes_every_file():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert {path.stem for path in files} == set(MADE_BY)
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for path in files:
        assert f"`{path.name}`" in card
        assert "num_steps" in read_metadata(path)["model_card"]


def test_a_missing_file_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vae\.safetensors.*portraits_base\.py"):
        load_weights("vae", tmp_path)


@pytest.mark.slow
def test_wplus_codes_carry_the_person_into_another_photograph():
    people = held_out_people("validation", 48, load_wplus_encoder())
    synthesis = Synthesis(STYLEGAN2)
    params = {"params": load_weights("wplus")["synthesis"]}
    drawn = jax.jit(lambda wplus: jnp.clip(synthesis.apply(params, wplus) * 0.5 + 0.5, 0.0, 1.0))(people.wplus)
    recognise = load_judges().recogniser
    drawn, others = (np.asarray(recognise(pixels)) for pixels in (drawn, people.gallery))
    assert identity_similarity(drawn, others).mean() > 0.85
    assert retrieval_top1(drawn, others, np.arange(48)).mean() > 0.9


def test_the_training_of_wplus_goes_on_from_a_file_and_names_one_that_does_not_fit(tmp_path):
    config = get_config("portraits_wplus")
    config.base.path = str(WEIGHTS)
    given, loaded = flatten(load_weights("wplus")), flatten(build_experiment(config, open_world(config)).load().params)
    assert loaded.keys() == given.keys() and all((loaded[path] == given[path]).all() for path in given)
    config.base.path = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"wplus\.safetensors, found none; correct config\.base\.path="):
        build_experiment(config, open_world(config))
    save_weights(tmp_path / "wplus.safetensors", {"encoder": {"kernel": np.zeros(2)}}, {})
    with pytest.raises(ValueError, match=r"wplus\.safetensors: expected a source that fits the parameters"):
        build_experiment(config, open_world(config)).load()
