"""A run that its time limit stops has decayed; one that is fast enough doesn't notice the limit. The clock is made up."""

import json

import jax
import numpy as np
import pytest

from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.paths import flatten
from pidiff_jax.runs.training import train_run
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train import loop, time_limit
from pidiff_jax.train.build import loop_settings
from pidiff_jax.train.plan import Plan
from pidiff_jax.train.time_limit import TimeLimit
from tests.train.tiny_training import SPECS, build_tiny, make_config

PEAK = SPECS["identity"].learning_rate


@pytest.fixture
def train(monkeypatch):
    """Trains, logging every step, where fetching a batch, the first included, takes so many seconds and all else none."""
    now = 0.0
    monkeypatch.setattr(time_limit, "perf_counter", lambda: now)

    def train_at(seconds_per_step, workdir, **changes):
        nonlocal now
        started = now

        def fetch(batch, mesh):
            nonlocal now
            now += seconds_per_step
            return shard_batch(batch, mesh)

        monkeypatch.setattr(loop, "shard_batch", fetch)
        train_run(make_config(log_every_steps=1, **changes), workdir, started=started, build=build_tiny())

    return train_at


def rates(workdir, group="identity"):
    lines = (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry[f"learning_rate/{group}"] for entry in entries if f"learning_rate/{group}" in entry]


def parameters(workdir):
    return {path: np.asarray(x) for path, x in flatten(load_parameters(workdir / "checkpoints")[0]).items()}


def test_a_run_at_half_the_speed_has_decayed_at_the_time_limit(tmp_path, train, capsys):
    train(2.0, tmp_path / "slow", max_seconds=13.0)
    assert "stopped by config.max_seconds at step 6 of 12" in capsys.readouterr().out
    slow = rates(tmp_path / "slow")
    assert slow[0] == pytest.approx(PEAK) and slow == sorted(slow, reverse=True)
    assert slow[-1] < 0.03 * PEAK
    train(2.0, tmp_path / "unlimited", num_steps=6)
    np.testing.assert_allclose(slow, rates(tmp_path / "unlimited"), atol=0.1 * PEAK)  # as if it had been planned so


def test_the_warmup_goes_by_steps_and_a_constant_rate_stays(tmp_path, train):
    train(2.0, tmp_path / "slow", max_seconds=13.0)
    peak = SPECS["mapper"].learning_rate
    np.testing.assert_allclose(rates(tmp_path / "slow", "mapper"), [peak / 2, *[peak] * 5], rtol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"accumulate_steps": 2}], ids=["whole", "accumulated"])
def test_a_run_that_is_fast_enough_is_the_same_as_without_a_limit(tmp_path, train, changes):
    train(1.0, tmp_path / "limited", max_seconds=14.0, **changes)
    train(1.0, tmp_path / "unlimited", **changes)
    assert rates(tmp_path / "limited") == rates(tmp_path / "unlimited")
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "limited"), parameters(tmp_path / "unlimited"))


def test_a_run_that_goes_on_has_its_time_anew_and_decays_from_where_it_stopped(tmp_path, train):
    train(2.0, tmp_path / "run", max_seconds=13.0)
    train(2.0, tmp_path / "run", max_seconds=9.0)
    train(1.0, tmp_path / "unlimited")
    by_step, (*_, first, second, third, fourth) = rates(tmp_path / "unlimited"), rates(tmp_path / "run")
    assert len(rates(tmp_path / "run")) == 10
    assert first == by_step[6] > by_step[7] > second > third > fourth
    assert fourth < 0.03 * PEAK


@pytest.fixture
def limit(monkeypatch):
    """The limit of 100 s of a run of twelve steps that goes on from step 4 after 20 s, and a function that sets its clock."""
    now = 20.0
    monkeypatch.setattr(time_limit, "perf_counter", lambda: now)

    def set_clock(seconds):
        nonlocal now
        now = seconds

    limit = TimeLimit(loop_settings(make_config(max_seconds=100.0)), 0.0, 4, make_mesh())
    assert float(limit.due_step()) == 4.0
    return limit, set_clock


@pytest.mark.parametrize(("seconds", "step"), [(20.0, 4.0), (60.0, 8.0), (90.0, 11.0), (100.0, 12.0), (130.0, 12.0)])
def test_steps_are_due_evenly_from_the_first_update_to_the_limit(limit, seconds, step):
    found, set_clock = limit
    set_clock(seconds)
    assert float(found.due_step()) == pytest.approx(step)
    assert found.is_over(report=False) == (seconds > 100.0)


def test_where_getting_ready_took_all_the_time_one_update_is_made_at_its_own_rate(tmp_path, train):
    train(2.0, tmp_path / "run", max_seconds=1.0)
    assert rates(tmp_path / "run") == pytest.approx([PEAK])


def test_the_step_is_compiled_once_whatever_the_clock_says(tmp_path, train, monkeypatch):
    steps = []
    compile_step = Plan.compile_step
    monkeypatch.setattr(Plan, "compile_step", lambda *args: steps.append(compile_step(*args)) or steps[-1])
    train(2.0, tmp_path / "slow", max_seconds=13.0)
    assert len(steps) == 1
    assert steps[0].args_info[0][3].shape == ()  # an argument of the program, none of its constants
