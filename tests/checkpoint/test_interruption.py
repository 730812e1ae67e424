"""A run killed at any moment and resumed ends with the same parameters as one that was left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(directory, output, *, num_devices=1, dies_at=0, when="late"):
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.checkpoint.interruptible_run"]
    arguments = [directory, 6, num_devices, dies_at, when, output]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    result = run(directory / "checkpoints", directory / "end.npz")
    assert result.returncode == 0, result.stderr
    return dict(np.load(directory / "end.npz"))


@pytest.mark.parametrize(("when", "resumed"), [("late", {4}), ("early", {2, 4})])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, uninterrupted, when, resumed):
    killed = run(tmp_path / "checkpoints", tmp_path / "end.npz", dies_at=4, when=when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(tmp_path / "checkpoints", tmp_path / "end.npz")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[0] == "resumed"
    assert int(again.stdout.split()[1]) in resumed
    actual = dict(np.load(tmp_path / "end.npz"))
    assert actual.keys() == uninterrupted.keys()
    for name, expected in uninterrupted.items():
        assert actual[name].tobytes() == expected.tobytes(), name


def test_a_run_resumes_on_another_number_of_devices(tmp_path, uninterrupted):
    killed = run(tmp_path / "checkpoints", tmp_path / "end.npz", dies_at=4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(tmp_path / "checkpoints", tmp_path / "end.npz", num_devices=4)
    assert again.stdout.split() == ["resumed", "4"], again.stderr
    for name, actual in np.load(tmp_path / "end.npz").items():
        np.testing.assert_allclose(actual, uninterrupted[name], rtol=2e-4, atol=2e-5, err_msg=name)
