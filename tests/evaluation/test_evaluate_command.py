"""Scoring a run again refuses what can't be scored in one line, before anything is loaded or drawn."""

import json
import runpy
from pathlib import Path

import pytest

from pidiff_jax.runs.saved_run import read_config
from tests.launch.commands import call

ROOT = Path(__file__).parents[2]


def error_of(workdir: Path, output: Path, *flags: str) -> str:
    result = call(f"--workdir={workdir}", f"--output={output}", *flags, command="evaluate")
    assert result.returncode == 1
    (message,) = result.stderr.strip().splitlines()
    return message


def make_run(folder: Path, experiment: str) -> Path:
    """The folder of a run that has got no further than its config."""
    config = runpy.run_path(str(ROOT / "experiments" / f"{experiment}.py"))["get_config"]()
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_best_effort(), encoding="utf-8")
    return folder


@pytest.fixture
def portraits_run(tmp_path):
    return make_run(tmp_path / "portraits", "quickstart")


@pytest.fixture
def photographs_run(tmp_path):
    return make_run(tmp_path / "photographs", "ffhq")


def test_people_prompts_and_split_are_refused_where_nobody_judges(photographs_run, tmp_path):
    message = error_of(photographs_run, tmp_path / "out", "--num_people=5", "--split=validation")
    assert message.startswith("error: expected no --num_people, --split for a run on photographs")
    assert not (tmp_path / "out").exists()


def test_a_number_of_references_that_nobody_can_mean_is_refused(portraits_run, tmp_path):
    message = error_of(portraits_run, tmp_path / "out", "--num_references=0")
    assert message == "error: --num_references: expected 1 to 100 photographs of each person, got 0; correct it"
    assert not (tmp_path / "out").exists()


def test_other_folders_are_refused_where_none_are_needed(portraits_run, tmp_path):
    message = error_of(portraits_run, tmp_path / "out", "--data_path=elsewhere")
    assert message.startswith("error: expected no --data_path for a run of the embedded world")


@pytest.mark.parametrize("key", ["world", "base", "mapper", "sampling", "evaluation"])
def test_a_run_of_an_earlier_version_is_told_from_one_of_this(portraits_run, tmp_path, key):
    stored = json.loads((portraits_run / "config.json").read_text(encoding="utf-8"))
    del stored[key]
    (portraits_run / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    message = f"got one of an earlier version, whose config has no config.{key}; train it again"
    assert message in error_of(portraits_run, tmp_path / "out")


def test_an_identity_start_that_is_no_share_is_refused(portraits_run, tmp_path):
    message = error_of(portraits_run, tmp_path / "out", "--identity_start=1.5")
    assert message == "error: config.sampling: expected identity_start in [0.0, 1.0], got 1.5; correct it"


def test_a_run_from_before_identity_start_has_the_identity_in_all_steps(portraits_run):
    stored = json.loads((portraits_run / "config.json").read_text(encoding="utf-8"))
    del stored["sampling"]["identity_start"]
    (portraits_run / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    assert read_config(portraits_run).sampling.identity_start == 0.0


def test_a_moved_base_is_looked_for_where_the_flag_says(photographs_run, tmp_path):
    line = [f"--workdir={photographs_run}", f"--output={tmp_path / 'out'}"]
    result = call(*line, "--base_path=new/base", "--data_path=new/data", command="evaluate")
    assert result.returncode == 1 and "'new/base'" in result.stderr and "'new/data'" in result.stderr


def test_an_output_that_is_a_file_is_refused_at_once(portraits_run, tmp_path):
    (tmp_path / "out").write_text("notes", encoding="utf-8")
    assert "expected a folder to write to at --output=" in error_of(portraits_run, tmp_path / "out")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "notes"


def test_results_are_never_overwritten(portraits_run, tmp_path):
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    assert "got metrics.json; choose another" in error_of(portraits_run, tmp_path)
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "expected the folder of a run, with config.json"),
        ("{", "got a damaged file"),
        (json.dumps({"task": "wplus"}), "got a run of the task 'wplus'"),
    ],
)
def test_what_is_no_identity_run_is_named(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    assert message in error_of(tmp_path, tmp_path / "out")
