"""Every experiment of the embedded world can be built, and every key of its config is read by some code."""

import importlib
from pathlib import Path

import pytest

from launch.identity_runs import IdentityExaminer
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.build import build_experiment, loop_settings
from tests.launch.recorded_config import RecordedConfig

EXPERIMENTS = [
    ("quickstart", "short"), ("quickstart", "long"), ("portraits_base", "vae"), ("portraits_base", "unet"),
    ("portraits_judges", "recogniser"), ("portraits_judges", "scenes"), ("portraits_judges", "segmenter"),
    ("portraits_wplus", None),
]  # fmt: skip


def read_everything(config: RecordedConfig) -> None:
    """What `train_experiment` does with a config before the first step."""
    experiment, settings = build_experiment(config), loop_settings(config)
    experiment.train_source()
    experiment.validation_source()
    if config.task == "identity":
        IdentityExaminer(config, Path("unused"), experiment, make_mesh(settings.mesh)).preview()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), EXPERIMENTS, ids=lambda value: value or "")
def test_every_key_is_read(name, part):
    get_config = importlib.import_module(f"experiments.{name}").get_config
    config = get_config(*([part] if part else []))
    config.data.num_people = 8
    recorded = RecordedConfig(config)
    read_everything(recorded)
    assert recorded.unread() == []
