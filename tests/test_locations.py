"""A path means what its user means, wherever it is written; what can't be read is refused by name."""

from pathlib import Path

import pytest

from launch.experiment_file import config_items
from pidiff_jax import open_run
from pidiff_jax.compilation_cache import cache_folder
from pidiff_jax.locations import local_path, optional_path
from pidiff_jax.worlds import open_world
from tests.launch.commands import call
from tests.launch.experiments import CONFIGS, get_config

ROOT = Path(__file__).parents[1]
# Last names of config keys that hold text and are no path.
WORDS = {"task", "world", "split", "compute_dtype", "frozen_dtype", "variant", "kind", "optimizer", "schedule"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/runs/x", "{home}/runs/x"),
        ("~", "{home}"),
        ("file:///data/x", "/data/x"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("runs/~x", "runs/~x"),
        ("./~/x", "./~/x"),
        ("./gs:/x", "gs:/x"),
        ("/a b/é", "/a b/é"),
        ("a:b/c", "a:b/c"),
    ],
)
def test_a_path_is_read_as_it_is_meant(home, written, meant):
    assert local_path(written, "--workdir") == Path(meant.format(home=home))


@pytest.mark.parametrize("place", ["gs://bucket/x", "s3://bucket/x", "hf://a/b", "https://a.b/c", "file://host/x"])
def test_a_place_elsewhere_is_refused_by_name(place):
    for written in (place, Path(place)):
        with pytest.raises(ValueError, match=f"on this machine for --workdir, got '{place[:2]}.*; mount what lies at"):
            local_path(written, "--workdir")


def test_a_path_that_is_none_is_said_so(home):
    with pytest.raises(ValueError, match="expected a path for --workdir, got nothing"):
        local_path("", "--workdir")
    with pytest.raises(ValueError, match="got '~nobody-of-this-name/x', nobody's home here; write the whole path"):
        local_path("~nobody-of-this-name/x", "--workdir")
    assert optional_path(None, "x") is None and optional_path("", "x") is None


PATH_FLAGS = {
    "train": ["config", "workdir", "compilation_cache"],
    "evaluate": ["workdir", "output", "base_path", "data_path", "compilation_cache"],
    "convert": ["source", "output", "tokenizer", "compilation_cache"],
    "prepare": ["photographs", "base", "e4e", "output", "compilation_cache"],
}


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, each in PATH_FLAGS.items() for flag in each]
)
def test_every_flag_of_a_path_goes_through_the_same_door(command, flag, tmp_path):
    values = {name: str(tmp_path / name) for name in PATH_FLAGS[command]}
    values |= {"config": "experiments/quickstart.py"} if command == "train" else {}
    line = [f"--{name}={value}" for name, value in (values | {flag: "gs://bucket/x"}).items()]
    result = call(*line, command=command)
    assert result.returncode in (1, 2)
    assert f"expected a path on this machine for --{flag}, got 'gs://bucket/x'" in result.stderr
    assert result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "part"), CONFIGS)
def test_every_key_of_a_path_goes_through_the_same_door(name, part):
    items = dict(config_items(get_config(name, part)))
    texts = {key for key, value in items.items() if isinstance(value, str) and key.split(".")[-1] not in WORDS}
    keys = {key for key in items if key.split(".")[-1] in ("path", "cache", "tokenizer")}
    assert texts <= keys, f"a text that is neither a path nor a known word: {texts - keys}"
    for key in keys:
        config = get_config(name, part)
        config.update_from_flattened_dict({key: "gs://bucket/x"})
        with pytest.raises(ValueError, match=rf"on this machine for config\.{key}, got 'gs://bucket/x'"):
            read_paths(config)


def read_paths(config):
    from pidiff_jax.runs.build import build_experiment

    world = open_world(config)
    build_experiment(config, world).sources.train()


def test_python_and_the_cache_of_programs_take_the_same_paths(home):
    with pytest.raises(FileNotFoundError, match=f"at {home}/nothing"):
        open_run("~/nothing")
    with pytest.raises(ValueError, match="got 'gs://bucket/run'"):
        open_run("gs://bucket/run")
    assert home in Path(cache_folder("~/programs", {})).parents
    with pytest.raises(ValueError, match="got 'gs://bucket'"):
        cache_folder("gs://bucket", {})


def test_a_run_in_the_home_is_there_and_not_in_a_folder_called_tilde(home):
    (home / "experiment.py").write_text(
        "from experiments.quickstart import get_config as base\n\ndef get_config():\n    return base()\n",
        encoding="utf-8",
    )
    result = call("--config=~/experiment.py", "--workdir=~/run", "--config.base.path=~/weights")
    assert result.returncode == 1 and f"expected embedded weights at {home}/weights" in result.stderr, result.stderr
    assert not (ROOT / "~").exists()
