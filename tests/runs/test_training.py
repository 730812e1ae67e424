"""A whole run of a tiny model: interrupted, resumed, stopped by time, refused."""

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.sources import ArraySource
from pidiff_jax.checkpoint.manager import CheckpointManager
from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.paths import flatten
from pidiff_jax.runs import folder as folders
from pidiff_jax.runs.folder import Workdir
from pidiff_jax.runs.training import RunParts, train_run
from pidiff_jax.sharding.rules import shard_batch
from pidiff_jax.train import loop
from pidiff_jax.train.hooks import ValidationHook
from pidiff_jax.train.plan import Plan
from pidiff_jax.train.termination import Terminated, postponed, raise_when_told_to_end
from tests.train.tiny_training import build_tiny, loss_fn, make_batch, make_config


def train(workdir, build=None, **changes):
    train_run(make_config(**changes), workdir, started=time.perf_counter(), build=build or build_tiny())


def parameters(workdir):
    return {path: np.asarray(x) for path, x in flatten(load_parameters(workdir / "checkpoints")[0]).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed; read only."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(workdir)
    return workdir


@pytest.fixture(scope="module")
def out_of_time(tmp_path_factory):
    """The folder of a run that its time ended after a step; read only."""
    workdir = tmp_path_factory.mktemp("out_of_time") / "run"
    train(workdir, max_seconds=0.0)
    return workdir


@pytest.fixture
def complete(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def stopped(out_of_time, tmp_path):
    return Path(shutil.copytree(out_of_time, tmp_path / "run"))


def test_a_run_that_was_interrupted_ends_where_an_uninterrupted_one_does(tmp_path, whole, capsys):
    reads = 0

    def interrupt():
        nonlocal reads
        reads += 1
        if reads > 8 * 8:
            raise KeyboardInterrupt

    with pytest.raises(BaseException):  # noqa: B017 (the loader's threads decide how it comes out)
        train(tmp_path / "cut", build_tiny(after=interrupt))
    assert not (tmp_path / "cut" / "complete.json").exists()
    train(tmp_path / "cut")
    assert "resuming from step" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "cut"), parameters(whole))
    history = [
        json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {"loss", "seconds", "grad_norm/identity"} <= history[-1].keys() | history[-2].keys()
    seconds = [entry["seconds"] for entry in history if "seconds" in entry]
    assert seconds == sorted(seconds)


@pytest.fixture
def heeding_signals(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    raise_when_told_to_end()
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    with contextlib.suppress(Terminated), postponed():
        pass  # or a signal that no `postponed` has seen would end a later test's run


def test_a_run_that_is_told_to_end_while_it_validates_saves_too(tmp_path, monkeypatch, heeding_signals):
    def validate(self, run, step, metrics, is_last):
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ValidationHook, "__call__", validate)
    with pytest.raises(Terminated):
        train(tmp_path / "cut", checkpoint_every_steps=100)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").glob("[0-9]*")
    assert checkpoint.name == "7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_run_that_is_told_to_end_saves_first(tmp_path, whole, capsys, number, heeding_signals):
    reads = 0

    def tell():
        nonlocal reads
        reads += 1
        if reads == 5 * 8:
            os.kill(os.getpid(), number)

    with pytest.raises(Terminated, match=signal.Signals(number).name):
        train(tmp_path / "cut", build_tiny(after=tell), checkpoint_every_steps=100, validate_every_steps=100)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").glob("[0-9]*")
    assert int(checkpoint.name) < 12
    train(tmp_path / "cut")
    assert f"resuming from step {checkpoint.name} of 12" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "cut"), parameters(whole))


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, Terminated), (signal.SIGUSR1, Terminated), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost(heeding_signals, number, error):
    class Last:
        def __del__(self):
            signal.raise_signal(number)

    with pytest.raises(error):
        last = Last()
        del last
        time.sleep(20)


def test_a_complete_run_is_left_alone(complete, capsys):
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*")}
    train(complete)
    assert "this run is complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in complete.rglob("*")}


def test_a_complete_run_can_be_given_more_steps_and_no_fewer(tmp_path, capsys):
    train(tmp_path / "run", num_steps=6)
    train(tmp_path / "run", num_steps=12)
    assert "resuming from step 6 of 12" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "complete.json").read_text(encoding="utf-8"))["num_steps"] == 12
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["num_steps"] == 12
    assert load_parameters(tmp_path / "run" / "checkpoints")[1]["step"] == 12
    with pytest.raises(ValueError, match=r"other values for num_steps \(12 -> 6\)"):
        train(tmp_path / "run", num_steps=6)


def test_a_folder_of_another_run_or_of_other_files_is_refused(tmp_path, complete):
    with pytest.raises(ValueError, match=r"other values for seed \(3 -> 4\)"):
        train(complete, seed=4)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(ValueError, match="got other files"):
        train(tmp_path / "photos")


def test_what_cannot_be_built_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"config\.log_every_steps of at least 1, got 0"):
        train(tmp_path / "run", log_every_steps=0)
    assert not (tmp_path / "run").exists()


def test_out_of_time_it_stops_saves_and_can_go_on(tmp_path, whole, capsys):
    train(tmp_path / "run", max_seconds=0.0)
    assert "stopped by config.max_seconds at step 1 of 12" in capsys.readouterr().out
    assert '"validation/loss"' in (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "complete.json").exists()
    train(tmp_path / "run", max_seconds=None)
    assert json.loads((tmp_path / "run" / "complete.json").read_text(encoding="utf-8"))["num_steps"] == 12
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "run"), parameters(whole))


def test_out_of_time_it_leaves_the_weights_that_it_was_for(tmp_path):
    cards = []

    def build(config):
        experiment = build_tiny()(config).experiment
        return RunParts(replace(experiment, write_weights=lambda folder, params, card: cards.append(card)))

    train(tmp_path / "run", build, max_seconds=0.0)
    train(tmp_path / "run", build, max_seconds=None)
    assert [card["num_steps"] for card in cards] == [1, 12]
    assert all("validation/loss" in card["scores"] for card in cards)


def test_a_run_that_diverges_stops_before_it_is_saved(tmp_path):
    def diverging(params, batch, key, train):
        values, metrics = loss_fn(params, batch, key, train)
        return {name: value * np.inf for name, value in values.items()}, metrics

    with pytest.raises(FloatingPointError, match=r"got loss = (nan|inf) at step 3; start in a new --workdir"):
        train(tmp_path / "run", build_tiny(loss=diverging))
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_parameters_that_a_bad_gradient_ruins_are_not_saved_although_their_loss_was_finite(tmp_path):
    def ruinous(params, batch, key, train):
        values, metrics = loss_fn(params, batch, key, train)
        zero = jax.tree.leaves(params["identity"])[0].sum() * 0.0
        return {
            name: value + jnp.sqrt(zero) for name, value in values.items()
        }, metrics  # the root's slope at 0 is infinite

    with pytest.raises(FloatingPointError, match=r"got param_norm/identity = nan at step 1"):
        train(tmp_path / "run", build_tiny(loss=ruinous), checkpoint_every_steps=1)
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_cadence_devices_and_folders_may_change_when_a_run_resumes(stopped):
    train(stopped, log_every_steps=2, mesh={"data": 4, "fsdp": 2, "tensor": 1})
    assert (stopped / "complete.json").exists()
    stored = json.loads((stopped / "config.json").read_text(encoding="utf-8"))
    assert stored["mesh"]["data"] == 4 and stored["log_every_steps"] == 2


def test_a_history_that_was_cut_off_in_a_line_does_not_keep_a_run_from_resuming(stopped):
    with (stopped / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    train(stopped)
    lines = (stopped / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["step"] for line in lines} >= {1, 3, 12}


@pytest.mark.parametrize("name", ["config.json", "complete.json"])
@pytest.mark.parametrize("content", ["", '{"num_st', "[]"])
def test_a_damaged_file_of_a_run_is_named(complete, name, content):
    (complete / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"expected .*JSON.* in .*run/{name}, got a .*; restore it, or remove it"):
        train(complete)


def test_a_damaged_line_of_the_history_is_left_out_with_a_warning(stopped):
    path = stopped / "history.jsonl"
    path.write_bytes(b"\x00\xff\x00\n[1]\n" + path.read_bytes())
    with pytest.warns(UserWarning, match=r"history.jsonl, line [12] is damaged and left out"):
        train(stopped)
    assert (stopped / "complete.json").exists()


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(folders, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(folders, "_WAIT_SECONDS", 3.0)


def test_two_programs_do_not_share_a_folder(stopped, short_lease, capsys):
    other = Workdir(stopped, make_config())
    assert other.check() is False  # and takes the folder
    here = re.escape(f"process {os.getpid()} on {platform.node()}")
    with pytest.raises(ValueError, match=rf"under way there \({here}.*\); .* remove .*run/\.lease"):
        train(stopped)
    assert "waiting up to" in capsys.readouterr().out
    other.release()
    train(stopped)


def on_another_host(lease):
    lease.write_text(re.sub("host=.*", "host=another-host", lease.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.fixture
def left_by_another_host(stopped, short_lease):
    """A folder whose run was killed on a host that nobody here can ask."""
    killed = Workdir(stopped, make_config())
    killed.check()
    marker = (stopped / ".lease").read_text(encoding="utf-8")
    killed.release()
    (stopped / ".lease").write_text(marker, encoding="utf-8")
    on_another_host(stopped / ".lease")
    return stopped


def test_a_run_that_was_killed_on_another_host_can_be_gone_on_with(left_by_another_host, capsys):
    train(left_by_another_host)
    assert re.search(r"see whether process \d+ on another-host is still at work", capsys.readouterr().out)
    assert (left_by_another_host / "complete.json").exists()
    assert not (left_by_another_host / ".lease").exists()


def test_a_run_that_is_alive_on_another_host_is_left_alone(left_by_another_host):
    stop = threading.Event()

    def heartbeat():
        while not stop.wait(0.2):
            os.utime(left_by_another_host / ".lease")

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"under way there \(process \d+ on another-host\)"):
            train(left_by_another_host)
    finally:
        stop.set()
        thread.join()


def test_a_program_whose_folder_was_taken_over_saves_nothing_more(tmp_path, short_lease):
    steps = 0

    def take_over():
        nonlocal steps
        steps += 1
        if steps == 30:
            on_another_host(tmp_path / "run" / ".lease")

    with pytest.raises(OSError, match="got process .* on another-host, which took it over"):
        train(tmp_path / "run", build_tiny(after=take_over), checkpoint_every_steps=1)
    assert not (tmp_path / "run" / "complete.json").exists()


def test_a_start_that_fails_does_not_keep_the_folder(stopped):

    def fail(config):
        raise ValueError("no such base")

    for _ in range(2):
        with pytest.raises(ValueError, match="no such base"):
            train(stopped, fail)
    other = Workdir(stopped, make_config())
    assert other.check() is False
    other.release()


def test_a_folder_that_cannot_be_one_is_refused_before_anything_is_built(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="choose another --workdir"):
            train(path)


def test_too_few_validation_records_are_said_before_the_first_step(tmp_path):
    few = ArraySource({name: array[:4] for name, array in make_batch(0).items()})
    found = build_tiny()(None)
    sources = found.experiment.sources._replace(validation=lambda: few)
    found = replace(found, experiment=replace(found.experiment, sources=sources))
    with pytest.raises(ValueError, match=r"at least one batch \(8\) of validation records, got 4"):
        train(tmp_path / "run", lambda config: found)
    assert not (tmp_path / "run").exists()


def test_a_state_that_is_not_finite_is_not_saved_when_the_machine_goes_away_either(tmp_path, monkeypatch):
    def ruinous(params, batch, key, train):
        values, metrics = loss_fn(params, batch, key, train)
        zero = jax.tree.leaves(params["identity"])[0].sum() * 0.0
        return {name: value + jnp.sqrt(zero) for name, value in values.items()}, metrics

    monkeypatch.setattr(CheckpointManager, "should_save", lambda self, step: True)
    with pytest.raises(
        FloatingPointError, match="got a state with NaN or infinity at step 1; start in a new --workdir"
    ):
        train(tmp_path / "run", build_tiny(loss=ruinous), log_every_steps=12, checkpoint_every_steps=12)
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_run_whose_steps_are_done_compiles_no_training_step(complete, monkeypatch):
    (complete / "complete.json").unlink()  # killed before its results were written
    monkeypatch.setattr(Plan, "compile_step", lambda *_: pytest.fail("compiled"))
    train(complete)
    assert (complete / "complete.json").exists()


def test_the_profiler_leaves_a_trace_that_tensorboard_reads(tmp_path):
    train(tmp_path / "run", profile_steps=(3, 4))
    (trace,) = (tmp_path / "run" / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 0


@pytest.mark.parametrize("steps", [(3,), (0, 4), (4, 3), (1, 2, 3), (11, 13)])
def test_steps_that_cannot_be_watched_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"expected config.profile_steps like \(11, 15\)"):
        train(tmp_path / "run", profile_steps=steps)
    assert not (tmp_path / "run").exists()


def test_less_than_no_worker_process_is_refused(tmp_path):
    config = make_config(num_workers=-1)
    with pytest.raises(ValueError, match="config.num_workers of at least 0, got -1"):
        train_run(config, tmp_path / "run", started=time.perf_counter(), build=build_tiny())


def test_the_next_batch_is_fetched_before_the_step_is_waited_for(tmp_path, monkeypatch):
    events = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: (events.append("wait"), wait(x))[1])
    monkeypatch.setattr(loop, "shard_batch", lambda *args: (events.append("fetch"), shard_batch(*args))[1])
    train(tmp_path / "run", num_steps=3, validate_every_steps=100)
    during = [event for event in events if event in ("fetch", "wait")]
    assert during[:5] == ["fetch", "fetch", "wait", "fetch", "wait"]


def test_nothing_wanders_to_the_device_by_itself_in_the_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "shard_batch", lambda batch, mesh: batch)  # arrays of the host
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path / "run")
