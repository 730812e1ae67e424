"""A value that a config can't have is refused by its key, before anything is loaded."""

import pytest
from ml_collections import ConfigDict

from launch.experiment_file import config_items, override
from pidiff_jax.runs.training import build_parts
from pidiff_jax.train.build import loop_settings
from tests.launch.experiments import EMBEDDED as CONFIGS
from tests.launch.experiments import get_config

HUGE = "1" + "0" * 30
BAD = ("nan", "inf", "-1", "0", "", HUGE, "None", "foo", "5", "(5,)", "((0, 1), 5)")
# What is meant to be taken, and why.
NUMBERS_FROM_ZERO = {  # off, or the smallest that does something
    "seed", "num_workers", "ema_decay", "background_weight", "min_time_fraction", "max_seconds", "identity.value_scale",
    "dropout.text", "dropout.identity", "dropout.both", "losses", "weight_decay", "warmup_steps", "b2",
    "sampling.identity_scale", "sampling.identity_start",
}  # fmt: skip
ANY_NUMBER = {"sampling.guidance_scale", "sampling.identity_scale"}  # negative ones lead away
ANY_FOLDER = {"base.path", "init.adapter"}  # None or empty: none
NOT_TOO_LARGE = {"min_snr_gamma", "max_seconds", "clip_norm", "weight_decay", "learning_rate", "background_weight", "losses",
                 "identity.value_scale"}  # fmt: skip
FLAGS = {"identity.sink"}


def is_meant(key: str, text: str, config: ConfigDict) -> bool:
    names = {key, key.rpartition(".")[2], key.partition(".")[0]}
    if text == "None" or key == "data.cache":  # a folder of any name, or none
        return True  # `override` refuses it by the key where None means nothing
    if text in ("0", "") and names & FLAGS or text == "5" and key in ("mapper.tokens_per_group", "data.num_people"):
        return True
    if text == "0":
        return bool(names & (NUMBERS_FROM_ZERO | ANY_NUMBER))
    if text == "-1":
        return bool(names & ANY_NUMBER) or key.startswith("mesh.")
    if text == "5":
        return isinstance(config_value(config, key), int | float) or config_value(config, key) is None
    if text == HUGE:
        return bool(names & (ANY_NUMBER | NOT_TOO_LARGE))
    return bool(names & ANY_FOLDER) and text == ""


def config_value(config: ConfigDict, key: str):
    return dict(config_items(config))[key]


def keys_of(config: ConfigDict) -> list[str]:
    return [key for key, value in config_items(config) if not isinstance(value, ConfigDict)]


@pytest.fixture(autouse=True)
def without_shapes(monkeypatch):
    """The checks are of values; the networks' shapes would take most of the time."""
    for name in ("unet_shapes", "text_encoder_shapes", "mapper_shapes"):
        monkeypatch.setattr(f"pidiff_jax.train.build.{name}", lambda *_: {})
    monkeypatch.setattr("pidiff_jax.worlds.portraits.tasks.common.jax.eval_shape", lambda *_: {})


@pytest.mark.parametrize(("name", "part"), CONFIGS, ids=lambda value: value or "")
def test_every_bad_value_is_refused_by_its_key(name, part):
    unseen = []
    for key in keys_of(get_config(name, part)):
        for text in BAD:
            config = get_config(name, part).lock()
            try:
                override(config, key, text)
                loop_settings(config)
                build_parts(config)
            except (ValueError, FileNotFoundError) as error:
                outer, _, last = key.rpartition(".")
                named = f"config.{key}" in str(error) or (f"config.{outer}" in str(error) and last in str(error))
                if not named and key not in str(error):
                    unseen.append((key, text, str(error)))
            except Exception as error:
                unseen.append((key, text, repr(error)))
            else:
                if not is_meant(key, text, config):
                    unseen.append((key, text, "accepted"))
    assert not unseen, "\n".join(map(str, unseen))
