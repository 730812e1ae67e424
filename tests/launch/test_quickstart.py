"""The quickstart, end to end but shorter: it trains, draws, scores, says that it is complete, and is scored again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pidiff_jax
from pidiff_jax.evaluation.metrics_file import SCORES

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
SHORT = {
    "max_seconds": None,  # a slow machine may take its time
    "num_steps": 20, "log_every_steps": 10, "validate_every_steps": 10, "checkpoint_every_steps": 10,
    "data.num_people": 64, "sampling.num_steps": 4, "evaluation.num_people": 16, "groups.identity.warmup_steps": 2,
}  # fmt: skip


def call(command: str, *arguments, num_devices: int = 1) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"launch.{command}", *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "quickstart"
    result = call(
        "train",
        "--config=experiments/quickstart.py",
        f"--workdir={path}",
        *(f"--config.{name}={value}" for name, value in SHORT.items()),
    )
    assert result.returncode == 0, result.stderr
    (path.parent / "stdout").write_text(result.stdout, encoding="utf-8")
    return path


def test_it_leaves_checkpoint_scores_report_pictures_and_events(workdir):
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    for name in SCORES:
        for key in ("on", "off"):
            interval = metrics[name][key]
            assert interval["low"] <= interval["mean"] <= interval["high"]
    assert metrics["num_steps"] == 20 and metrics["seconds_training"] > 0
    assert metrics["fingerprints"] and "jax" in metrics["versions"]
    assert metrics["prompt_accuracy"]["off"]["mean"] > 0.5  # the shipped base obeys its captions, even in four steps
    assert metrics["details"]["identity_similarity/photographs"]["mean"] > 0.8  # the shipped recogniser knows people

    with Image.open(workdir / "samples.png") as picture:
        assert picture.width > 8 * 190 and picture.height > 8 * 190
        assert np.asarray(picture).std() > 30
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "identity similarity" in report
    assert "://" not in report.replace("http://www.w3.org", "")  # "http" alone may stand in a picture's base64
    assert list((workdir / "tensorboard").glob("events*"))
    assert {"10", "20"} <= {path.name for path in (workdir / "checkpoints").iterdir()}

    history = [json.loads(line) for line in (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    validated = [entry for entry in history if "validation/identity_similarity" in entry]
    assert [entry["step"] for entry in validated] == [10]


def test_it_prints_the_scores_and_where_the_results_are(workdir):
    printed = (workdir.parent / "stdout").read_text(encoding="utf-8")
    for name in (*SCORES, "samples.png", "report.html", "metrics.json", "frozen"):
        assert name in printed


def test_run_again_it_says_that_it_is_complete(workdir):
    before = (workdir / "metrics.json").stat().st_mtime_ns
    settings = [f"--config.{name}={value}" for name, value in SHORT.items()]
    result = call("train", "--config=experiments/quickstart.py", f"--workdir={workdir}", *settings)
    assert result.returncode == 0 and "this run is complete" in result.stdout
    assert (workdir / "metrics.json").stat().st_mtime_ns == before


def test_scored_again_it_scores_the_same_and_without_identity_draws_the_base(workdir):
    output = workdir.parent / "again"
    result = call("evaluate", f"--workdir={workdir}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((path / "metrics.json").read_text(encoding="utf-8")) for path in (workdir, output))
    for name in SCORES:
        assert first[name]["on"]["mean"] == pytest.approx(second[name]["on"]["mean"], abs=1e-5)
    assert second["num_steps"] == 20


def test_the_example_at_the_top_of_the_package_draws_a_person(workdir, tmp_path, monkeypatch):
    lines = [line.strip() for line in pidiff_jax.__doc__.splitlines()]
    example = [line.removeprefix(">>> ") for line in lines if line.startswith(">>> ")]
    assert 4 <= len(example) <= 8
    monkeypatch.chdir(tmp_path)
    photograph = pidiff_jax.open_run(workdir).world.held_out("test").people(1).references[0]
    pidiff_jax.save_png("anna.png", photograph)
    exec("\n".join(example).replace("runs/quickstart", str(workdir)), {})
    with Image.open(tmp_path / "anna_in_red.png") as picture:
        assert picture.size == (64, 64) and np.asarray(picture).std() > 20


def test_scoring_a_step_that_is_not_there_leaves_no_folder(workdir, tmp_path):
    result = call("evaluate", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--step=99")
    assert result.returncode == 1 and "checkpoint of step 99" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_of_eight_devices_is_scored_on_one(tmp_path):
    few = {"num_steps": 2, "checkpoint_every_steps": 2, "data.num_people": 8, "sampling.num_steps": 1}
    few |= {"evaluation.num_people": 3, "evaluation.num_prompts": 3, "groups.identity.warmup_steps": 1}
    settings = [f"--config.{name}={value}" for name, value in (few | {"mesh.data": 1, "mesh.fsdp": 8}).items()]
    run = tmp_path / "run"
    trained = call("train", "--config=experiments/quickstart.py", f"--workdir={run}", *settings, num_devices=8)
    assert trained.returncode == 0, trained.stderr
    scored = call("evaluate", f"--workdir={run}", f"--output={tmp_path / 'again'}")
    assert scored.returncode == 0, scored.stderr
    first, second = (
        json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (run, tmp_path / "again")
    )
    for name in SCORES:
        assert first[name]["on"]["mean"] == pytest.approx(second[name]["on"]["mean"], abs=1e-3)
