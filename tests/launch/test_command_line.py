"""Mistakes on the command line end in one line that helps, before anything is made."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import quickstart
from launch import command_line

ROOT = Path(__file__).parents[2]
CONFIG = quickstart.get_config()


def call(*arguments, command="train"):
    line = [sys.executable, "-m", f"launch.{command}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.num_step=3", "unknown config key 'num_step'; did you mean 'num_steps'?"),
        ("--config.groups.identity.learning_rat=1", "did you mean 'groups.identity.learning_rate'?"),
        ("--config.num_step", "unknown config key 'num_step'; did you mean 'num_steps'?"),
        ("--config.num_steps=many", f"expected a value like {CONFIG.num_steps} for --config.num_steps, got 'many'"),
        ("--config.batch_size=1.5", f"expected a value like {CONFIG.batch_size} for --config.batch_size, got '1.5'"),
        ("--config.num_steps=None", f"expected a value like {CONFIG.num_steps} for --config.num_steps, got 'None'"),
        (
            "--config.data=5",
            "expected a value of one key, got '5' for all of --config.data; set --config.data.cache",
        ),
        ("--config.base.path=sd15", "expected config.base.path='portraits' in this experiment"),
        ("--config.dropout.both=1.5", "expected dropout probabilities"),
        ("--config.groups.identity.learning_rate=-1.0", "expected a learning_rate above 0"),
        (
            "--config.compute_dtype=float16",
            "expected config.compute_dtype of ('float32', 'bfloat16') or None, got 'float16'",
        ),
        ("extra", "expected flags only, got 'extra'"),
    ],
)
def test_a_wrong_key_or_type_is_named_with_the_nearest_valid_one(argument, expected, tmp_path):
    result = call("--config=experiments/quickstart.py", f"--workdir={tmp_path / 'run'}", argument)
    assert result.returncode != 0
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert expected in result.stderr
    assert not (tmp_path / "run").exists()


def test_none_is_a_value_of_the_keys_that_may_have_none():
    def unset(*arguments):
        return set(command_line._unset_keys(["train", "--config=experiments/quickstart.py", *arguments]))

    assert unset("--config.background_weight=None", "--config.ema_decay=None") == {"background_weight", "ema_decay"}
    assert unset("--config.num_steps=None", "--config.data.cache=None") == {"data.cache"}


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        command_line._guarded(main, "run it again")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted; run it again\n"


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
    (tmp_path / "config.json").write_text('{"task": "identity", "base": {"path": "portraits"}}')
    (tmp_path / "metrics.json").touch()
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path}", command="evaluate")
    assert "expected a folder without results" in result.stderr
    assert not (tmp_path / "out").exists()
