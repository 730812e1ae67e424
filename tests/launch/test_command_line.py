"""Mistakes on the command line end in one line that helps, before anything is made."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(*arguments, command="train"):
    line = [sys.executable, "-m", f"launch.{command}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.num_step=3", "unknown config key 'num_step'; did you mean 'num_steps'?"),
        ("--config.groups.identity.learning_rat=1", "did you mean 'groups.identity.learning_rate'?"),
        ("--config.num_steps=many", "expected a value like 600 for --config.num_steps, got 'many'"),
        ("--config.batch_size=1.5", "expected a value like 16 for --config.batch_size, got '1.5'"),
        ("extra", "expected flags only, got 'extra'"),
    ],
)
def test_a_wrong_key_or_type_is_named_with_the_nearest_valid_one(argument, expected, tmp_path):
    result = call("--config=experiments/quickstart.py", f"--workdir={tmp_path / 'run'}", argument)
    assert result.returncode != 0
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert expected in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there_is_said_so(tmp_path):
    result = call("--config=experiments/none.py", f"--workdir={tmp_path / 'run'}")
    assert result.returncode != 0
    assert result.stderr.strip() == "error: expected a config file at experiments/none.py, found none; see experiments/"
    result = call("--config=experiments/quickstart.py:medium", f"--workdir={tmp_path / 'run'}")
    assert result.returncode != 0
    assert result.stderr.strip().endswith("experiments/quickstart.py:long, got 'medium'")
    assert len(result.stderr.strip().splitlines()) == 1


def test_scoring_wants_the_folder_of_a_run_and_an_empty_one_for_results(tmp_path):
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}", command="evaluate")
    assert result.returncode == 1
    assert "error: expected the folder of a run" in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "config.json").write_text('{"task": "autoencoder"}')
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}", command="evaluate")
    assert "got a run of the task 'autoencoder'" in result.stderr
    (tmp_path / "metrics.json").touch()
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path}", command="evaluate")
    assert "expected a folder without results" in result.stderr
    assert not (tmp_path / "out").exists()
