"""Mistakes on the command line end in one line that helps, before anything is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import quickstart
from tests.launch.commands import call, call_script

ROOT = Path(__file__).parents[2]
CONFIG = quickstart.get_config()


def call_afresh(*line, **environment):
    """Python that has imported nothing yet."""
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


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
        ("--config.base.path=sd15", "expected embedded weights at sd15/base.safetensors"),
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


def test_a_value_without_an_equals_sign_is_refused_with_what_to_write(tmp_path):
    arguments = ("--config", "experiments/quickstart.py", "--config.num_steps", "5", f"--workdir={tmp_path / 'run'}")
    result = call(*arguments)
    assert result.returncode == 2
    example = f"write --config.num_steps={CONFIG.num_steps}"
    assert result.stderr == f"error: expected --config.num_steps=VALUE, got no '='; {example}\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare", "convert"])
def test_help_shows_the_flags_and_needs_no_jax(command):
    script = f"""
import runpy, sys
try:
    runpy.run_module("launch.{command}", {{}}, "__main__")
finally:
    print("jax" in sys.modules, file=sys.stderr)
"""
    result = call_afresh("-c", script, "--help")
    assert result.stderr == "False\n" and result.returncode == 0
    for flag in ("--compilation_cache:", "--config:" if command == "train" else "--output:"):
        assert flag in result.stdout
    assert ("--config.KEY=VALUE" in result.stdout) == (command == "train")


def test_a_wrong_command_line_needs_no_jax_either(tmp_path):
    script = f"import sys; sys.modules['jax'] = None; sys.argv += ['--workdir={tmp_path}', '--config=none.py']"
    result = call_afresh("-c", f"{script}; import runpy; runpy.run_module('launch.train', {{}}, '__main__')")
    assert result.returncode == 2
    assert result.stderr == "error: expected a config file at none.py, found none; see experiments/\n"


def test_flags_that_are_missing_are_named_together():
    result = call()
    assert result.returncode == 2
    expected = "error: expected a value of --config and --workdir, got none; write --config=VALUE (--help explains it)"
    assert result.stderr == f"{expected}\n"


def test_a_config_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "settings_of_mine.py").write_text("from experiments.quickstart import get_config", encoding="utf-8")
    (tmp_path / "mine.py").write_text("from settings_of_mine import get_config", encoding="utf-8")
    result = call(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}", "--config.seed=-1")
    assert result.returncode == 1 and "config.seed" in result.stderr


@pytest.mark.parametrize(
    ("ending", "status", "expected"),
    [
        ("import sys; sys.exit(3)", 2, "got SystemExit: 3; correct the file"),
        ("raise KeyboardInterrupt", 130, "interrupted; nothing was begun"),
    ],
)
def test_a_config_that_ends_itself_is_said_so(tmp_path, ending, status, expected):
    (tmp_path / "ends.py").write_text(ending, encoding="utf-8")
    result = call(f"--config={tmp_path / 'ends.py'}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == status and expected in result.stderr and result.stderr.count("\n") == 1


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on():
    script = """
from launch import command_line

def main():
    raise KeyboardInterrupt

command_line.start(main, after_interrupt="run it again")
"""
    result = call_script(script)
    assert result.returncode == 130
    assert result.stderr == "interrupted; run it again\n"


def test_a_letter_that_the_terminal_lacks_is_written_otherwise():
    script = """
import sys
from launch import command_line

sys.stdout.reconfigure(encoding="ascii")
command_line.start(lambda: print("café"), after_interrupt="")
"""
    result = call_script(script)
    assert result.returncode == 0 and result.stdout == "caf\\xe9\n"


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGXCPU", 152)])
def test_a_signal_that_ends_a_command_lets_it_clean_up(name, status, tmp_path):
    script = f"""
import os, signal
from data_pipeline.records import write_records
from launch import command_line
from tests.data_pipeline.made_up_records import make_record

def records():
    yield make_record(0)
    os.kill(os.getpid(), signal.{name})
    yield make_record(1)

command_line.start(lambda: write_records({str(tmp_path / "records")!r}, {{"train": records()}}), after_interrupt="run it again")
"""
    result = call_script(script)
    assert result.returncode == status
    assert result.stderr == f"ended by {name}; run it again\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("platform", ["gpu", "cuda", "tpu", "none"])
def test_devices_that_are_not_here_are_said_so_in_one_line(platform, tmp_path):
    arguments = "--config=experiments/quickstart.py", f"--workdir={tmp_path / 'run'}"
    result = call_afresh("-m", "launch.train", *arguments, JAX_PLATFORMS=platform)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: expected the devices of JAX_PLATFORMS={platform}, got: ")
    assert result.stderr.count("\n") == 1 and "JAX_PLATFORMS=cpu" in result.stderr


@pytest.mark.parametrize(
    "error",
    ["MemoryError('no room')", "RuntimeError('RESOURCE_EXHAUSTED: no room')", "OSError(28, 'No space left')"],
)
def test_what_the_machine_refuses_is_one_line(error):
    script = f"""
from launch import command_line

def main():
    raise {error}

command_line.start(main, after_interrupt="")
"""
    result = call_script(script)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_config_that_is_not_there_is_said_so(tmp_path):
    result = call("--config=experiments/none.py", f"--workdir={tmp_path / 'run'}")
    assert result.returncode != 0
    assert result.stderr.strip() == "error: expected a config file at experiments/none.py, found none; see experiments/"
    result = call("--config=experiments/quickstart.py:medium", f"--workdir={tmp_path / 'run'}")
    assert result.returncode != 0
    assert result.stderr.strip().endswith("experiments/quickstart.py:long, got 'medium'")
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_traceback_is_shown_to_those_who_ask_for_it(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return missing_name", encoding="utf-8")
    arguments = f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'run'}"
    result = call(*arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "got NameError: name 'missing_name' is not defined; correct the file" in result.stderr
    result = call(*arguments, PIDIFF_TRACEBACK="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "return missing_name" in result.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare"])
def test_every_command_joins_the_other_processes(command, tmp_path):
    needed = {
        "train": ["--config=experiments/quickstart.py", f"--workdir={tmp_path}"],
        "evaluate": [f"--workdir={tmp_path}", f"--output={tmp_path}"],
        "prepare": ["--photographs=p", "--base=b", "--e4e=e", f"--output={tmp_path}"],
    }
    result = call(*needed[command], command=command, JAX_COORDINATOR_ADDRESS="localhost:1")
    assert result.returncode == 1
    assert "beside JAX_COORDINATOR_ADDRESS" in result.stderr and len(result.stderr.splitlines()) == 1


def test_scoring_wants_the_folder_of_a_run_and_an_empty_one_for_results(tmp_path):
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}", command="evaluate")
    assert result.returncode == 1
    assert "error: expected the folder of a run" in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "config.json").write_text('{"task": "autoencoder"}', encoding="utf-8")
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}", command="evaluate")
    assert "got a run of the task 'autoencoder'" in result.stderr
    (tmp_path / "config.json").write_text(CONFIG.to_json_best_effort(), encoding="utf-8")
    (tmp_path / "metrics.json").touch()
    result = call(f"--workdir={tmp_path}", f"--output={tmp_path}", command="evaluate")
    assert "expected a folder without results" in result.stderr
    assert not (tmp_path / "out").exists()


def test_preparing_refuses_stray_arguments_and_an_old_folder(tmp_path):
    needed = ["--photographs=p", "--base=b", "--e4e=e", f"--output={tmp_path}"]
    result = call(*needed, "size_px=256", command="prepare")
    assert result.returncode == 2
    assert result.stderr == "error: expected flags only, got 'size_px=256'; write --name=value\n"
    result = call(*needed, command="prepare")
    assert result.returncode == 1
    assert result.stderr.startswith("error: expected a new folder for records") and result.stderr.count("\n") == 1
    result = call(*needed, command="prepare", PIDIFF_TRACEBACK="1")
    assert result.returncode == 1 and "Traceback" in result.stderr and "FileExistsError" in result.stderr


def test_preparing_is_the_work_of_one_process(tmp_path):
    script = """
import runpy, sys
import jax

jax.process_count = lambda: 4
sys.argv[0] = "launch/prepare.py"
runpy.run_module("launch.prepare", run_name="__main__")
"""
    needed = [f"--{name}={tmp_path / name}" for name in ("photographs", "base", "e4e", "output")]
    result = call_script(script, *needed)
    assert result.returncode == 1
    assert result.stderr.startswith("error: expected one process to prepare photographs, got 4 that share")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config"], "expected --config=FILE.py or --config=FILE.py:PART, got no file; see experiments/"),
        (["--config="], "expected --config=FILE.py or --config=FILE.py:PART, got no file; see experiments/"),
        (["--config=experiments"], "expected --config=FILE.py or FILE.py:PART, got 'experiments'; see experiments/"),
        (["--config=a.py", "--config=b.py"], "expected --config once, got it 2 times; leave one"),
    ],
)
def test_a_config_flag_without_one_file_is_refused(arguments, expected, tmp_path):
    result = call(*arguments, f"--workdir={tmp_path / 'run'}")
    assert (result.returncode, result.stderr) == (2, f"error: {expected}\n")
