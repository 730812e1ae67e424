"""A run killed at any moment and resumed ends with the same parameters as one that was left alone."""

import signal

import numpy as np
import pytest

from tests.launch.commands import call_script


def run(directory, output, *, num_devices=1, dies_at=0, when="late"):
    arguments = (str(directory), 6, num_devices, dies_at, when, str(output))
    return call_script(f"from tests.checkpoint.interruptible_run import main; main(*{arguments})")


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
