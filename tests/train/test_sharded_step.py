"""The same training on one device, on eight however the mesh divides them, and in two processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.runs.training import train_run
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import from_first_process, shard_batch
from pidiff_jax.train import time_limit
from pidiff_jax.train.step import compile_train_step, make_train_step
from tests.train.tiny_training import (
    LOSS_WEIGHTS,
    OVER_AT_STEP_3,
    build_tiny,
    loss_fn,
    made_up_clock,
    make_batch,
    make_config,
    start,
)

ROOT = Path(__file__).parents[2]
NUM_STEPS = 4


def train(mesh, accumulate_steps=1):
    state, frozen, optimizer = start(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        loss_fn, optimizer, loss_weights=LOSS_WEIGHTS, ema_decay=0.9, seed=3, accumulate_steps=accumulate_steps
    )
    compiled = compile_train_step(step, state, frozen, make_batch(0), mesh)
    for index in range(NUM_STEPS):
        state, metrics = compiled(state, frozen, shard_batch(make_batch(index), mesh), from_first_process(0.0, mesh))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return jax.tree.map(np.asarray, (state.trainable, state.ema, metrics))


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)


@pytest.fixture(scope="module")
def on_one_device():
    return train(make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"fsdp": 8}, {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=lambda sizes: "-".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_eight_devices_train_as_one(on_one_device, sizes):
    assert_close(train(make_mesh(sizes)), on_one_device)


def test_eight_devices_accumulate_as_one():
    on_one = train(make_mesh(devices=jax.devices()[:1]), accumulate_steps=2)
    assert_close(train(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), accumulate_steps=2), on_one)


def test_moments_and_averages_lie_where_their_parameter_lies():
    state, _, _ = start(make_mesh({"fsdp": 4, "tensor": 2}))
    # Muon keeps one momentum, AdamW two moments; each parameter has one average.
    for name, count in (("identity", 2), ("mapper", 3)):
        kernel = state.trainable[name]["kernel"]
        assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
        same_shape = [x for x in jax.tree.leaves((state.ema, state.opt_state)) if x.shape == kernel.shape]
        assert len(same_shape) == count
        assert all(x.sharding == kernel.sharding for x in same_shape)


def test_two_processes_train_stop_and_resume_as_one(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    logs = [(tmp_path / f"log{index}").open("w+", encoding="utf-8") for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.process_of_two", str(port), str(index), str(tmp_path)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for index, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            log.close()
    assert codes == [0, 0], [(tmp_path / f"log{index}").read_text(encoding="utf-8")[-2000:] for index in range(2)]
    assert "stopped by config.max_seconds at step 3 of 12" in (tmp_path / "log0").read_text(encoding="utf-8")
    assert "resuming from step 3 of 12" in (tmp_path / "log0").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "two" / "complete.json").read_text(encoding="utf-8"))["num_steps"] == 12
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "two" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert steps == sorted(steps) and {3, 4, 6, 8, 9, 12} <= set(steps)

    monkeypatch.setattr(time_limit, "perf_counter", made_up_clock())
    train_run(make_config(max_seconds=OVER_AT_STEP_3), tmp_path / "one", started=0.0, build=build_tiny())
    train_run(make_config(), tmp_path / "one", started=time.perf_counter(), build=build_tiny())
    one, two = (load_parameters(tmp_path / name / "checkpoints")[0] for name in ("one", "two"))
    assert_close(two, one)
