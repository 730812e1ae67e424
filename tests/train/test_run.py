"""A whole training of a tiny model: interrupted, resumed, stopped by time, refused."""

import json
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.sources import ArraySource
from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.paths import flatten
from pidiff_jax.train import run
from pidiff_jax.train.workdir import Workdir
from tests.train.tiny_training import NETWORK, loss_fn, make_batch, make_config, make_experiment


@pytest.fixture
def build(monkeypatch):
    def use(**options):
        monkeypatch.setattr(run, "build_experiment", lambda config: make_experiment(**options))

    use()
    return use


def train(workdir, **changes):
    run.train_experiment(make_config(**changes), workdir, started=time.perf_counter())


def parameters(workdir):
    return {path: np.asarray(x) for path, x in flatten(load_parameters(workdir / "checkpoints")[0]).items()}


def test_a_run_that_was_interrupted_ends_where_an_uninterrupted_one_does(build, tmp_path, capsys):
    train(tmp_path / "whole")
    reads = 0

    def interrupt():
        nonlocal reads
        reads += 1
        if reads > 8 * 8:
            raise KeyboardInterrupt

    build(after=interrupt)
    with pytest.raises(BaseException):  # noqa: B017 (the loader's threads decide how it comes out)
        train(tmp_path / "cut")
    assert not (tmp_path / "cut" / "complete.json").exists()
    build()
    train(tmp_path / "cut")
    assert "resuming from step" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "cut"), parameters(tmp_path / "whole"))
    history = [json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text().splitlines()]
    assert {"loss", "seconds", "grad_norm/identity"} <= history[-1].keys() | history[-2].keys()
    seconds = [entry["seconds"] for entry in history if "seconds" in entry]
    assert seconds == sorted(seconds)


def test_a_complete_run_is_left_alone(build, tmp_path, capsys):
    train(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    train(tmp_path / "run")
    assert "this run is complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_a_folder_of_another_run_or_of_other_files_is_refused(build, tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match=r"other values for seed \(3 -> 4\)"):
        train(tmp_path / "run", seed=4)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(ValueError, match="got other files"):
        train(tmp_path / "photos")


def test_what_cannot_be_built_leaves_no_folder(build, tmp_path):
    with pytest.raises(ValueError, match=r"config\.log_every_steps of at least 1, got 0"):
        train(tmp_path / "run", log_every_steps=0)
    assert not (tmp_path / "run").exists()


def test_out_of_time_it_stops_saves_and_can_go_on(build, tmp_path, capsys):
    train(tmp_path / "run", max_seconds=0.0)
    assert "stopped by config.max_seconds at step 1 of 12" in capsys.readouterr().out
    assert '"validation/loss"' in (tmp_path / "run" / "history.jsonl").read_text()
    assert not (tmp_path / "run" / "complete.json").exists()
    train(tmp_path / "run", max_seconds=None)
    assert json.loads((tmp_path / "run" / "complete.json").read_text())["num_steps"] == 12
    train(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "run"), parameters(tmp_path / "whole"))


def test_a_training_that_diverges_stops_before_it_is_saved(build, tmp_path):
    def diverging(params, batch, key, train):
        values, metrics = loss_fn(params, batch, key, train)
        return {name: value * np.inf for name, value in values.items()}, metrics

    build(loss=diverging)
    with pytest.raises(FloatingPointError, match=r"got loss = (nan|inf) at step 3; start in a new --workdir"):
        train(tmp_path / "run")
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_parameters_that_a_bad_gradient_ruins_are_not_saved_although_their_loss_was_finite(build, tmp_path):
    def ruinous(params, batch, key, train):
        values, metrics = loss_fn(params, batch, key, train)
        zero = jax.tree.leaves(params["identity"])[0].sum() * 0.0
        return {
            name: value + jnp.sqrt(zero) for name, value in values.items()
        }, metrics  # the root's slope at 0 is infinite

    build(loss=ruinous)
    with pytest.raises(FloatingPointError, match=r"got param_norm/identity = nan at step 1"):
        train(tmp_path / "run", checkpoint_every_steps=1)
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_cadence_devices_and_folders_may_change_when_a_run_resumes(build, tmp_path):
    train(tmp_path / "run", max_seconds=0.0)
    train(tmp_path / "run", log_every_steps=2, mesh={"data": 4, "fsdp": 2, "tensor": 1})
    assert (tmp_path / "run" / "complete.json").exists()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["mesh"]["data"] == 4 and stored["log_every_steps"] == 2


def test_a_history_that_was_cut_off_in_a_line_does_not_keep_a_run_from_resuming(build, tmp_path):
    train(tmp_path / "run", max_seconds=0.0)
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    train(tmp_path / "run")
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} >= {1, 3, 12}


def test_two_trainings_do_not_share_a_folder(build, tmp_path):
    train(tmp_path / "run", max_seconds=0.0)
    other = Workdir(tmp_path / "run", make_config())
    assert other.check() is False  # and takes the folder
    with pytest.raises(ValueError, match="got a training that is under way there"):
        train(tmp_path / "run")
    other.release()
    train(tmp_path / "run")


def test_a_folder_that_cannot_be_one_is_refused_before_anything_is_built(build, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="choose another --workdir"):
            train(path)


def test_too_few_validation_records_are_said_before_the_first_step(build, tmp_path, monkeypatch):
    few = ArraySource({name: array[:4] for name, array in make_batch(0).items()})
    whole = make_experiment()
    monkeypatch.setattr(run, "build_experiment", lambda config: replace(whole, validation_source=lambda: few))
    with pytest.raises(ValueError, match=r"at least one batch \(8\) of validation records, got 4"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_loaded_for_scoring(build, tmp_path):
    train(tmp_path / "run")
    _, result = run.load_run(make_config(), tmp_path / "run", None)
    stored = parameters(tmp_path / "run")
    loaded = flatten(result.params)
    assert stored.keys() < loaded.keys()
    assert all(np.array_equal(loaded[path], value) for path, value in stored.items())
    assert result.facts["num_steps"] == 12 and result.facts["seconds_training"] > 0
    assert result.history[-1]["step"] == 12
    with pytest.raises(ValueError, match="step"):
        run.load_run(make_config(), tmp_path / "run", 5)


def test_examiners_are_called_at_validation_and_at_the_end(build, tmp_path):
    calls = []

    class Examiner:
        def preview(self):
            def preview(params):
                calls.append("preview")
                return {"samples": np.zeros((4, 4, 3), np.uint8)}, {"validation/identity_similarity": 0.5}

            return preview

        def finish(self, result):
            calls.append(("finish", result.facts["num_steps"], sorted(result.params)))

    run.train_experiment(
        make_config(), tmp_path / "run", started=time.perf_counter(), make_examiner=lambda *_: Examiner()
    )
    names = sorted(NETWORK.init(jax.random.key(7), *map(jax.numpy.asarray, make_batch(0).values()))["params"])
    assert calls == ["preview", ("finish", 12, names)]
    lines = (tmp_path / "run" / "history.jsonl").read_text()
    assert '"validation/identity_similarity": 0.5' in lines
