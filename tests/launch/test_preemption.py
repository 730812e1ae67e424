"""Machines that are taken away: all processes save the same step and end, and the run goes on."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = {
    "num_steps": 2000, "data.num_people": 16, "evaluation.num_people": 4, "validate_every_steps": 10_000,
    "checkpoint_every_steps": 10_000, "max_seconds": None, "batch_size": 4,
}  # fmt: skip


def start(workdir: Path, index: int, port: int) -> subprocess.Popen:
    names = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
    line = [sys.executable, "-m", "launch.train", "--config=experiments/quickstart.py", f"--workdir={workdir}"]
    line += [f"--config.{key}={value}" for key, value in FEW.items()]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **names}
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.full
def test_two_processes_of_which_one_is_told_to_end_save_and_end_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path / "run", index, port) for index in range(2)]
    try:
        said = next((line for line in processes[0].stdout if "first step after" in line), None)
        assert said is not None, processes[0].communicate()[1]
        processes[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert "ended by SIGTERM; run the same command to go on from the last checkpoint" in errors
        assert "Traceback" not in errors
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name) < FEW["num_steps"]
