"""Checkpoints come back whole, on any mesh; foreign or damaged ones are told apart."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from pidiff_jax.checkpoint.fingerprint import fingerprint
from pidiff_jax.checkpoint.manager import CheckpointManager, CheckpointMismatchError
from pidiff_jax.checkpoint.parameters import load_parameters
from pidiff_jax.optim.groups import GroupedOptimizer
from pidiff_jax.sharding.mesh import make_mesh
from pidiff_jax.train.state import init_state
from tests.train.tiny_training import start

FROZEN = {"base": "abc"}


def open_manager(directory, **options):
    defaults = {"config": {"seed": 1}, "frozen": FROZEN, "save_every_steps": 2, "keep_last": 2}
    return CheckpointManager(directory, **{**defaults, **options})


@pytest.fixture(scope="module")
def state():
    return start(make_mesh({"fsdp": 4, "tensor": 2}))[0]


def at_step(state, step):
    moved = jax.tree.map(lambda x: x + step if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    return moved.replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("data_state", [b"\x00position", {"next_index": 12, "worker": [1, 2]}, None])
def test_everything_comes_back(tmp_path, state, data_state):
    with open_manager(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        assert checkpoints.save(at_step(state, 2), data_state)
        assert not checkpoints.save(at_step(state, 2), data_state)
    with open_manager(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(state)
    assert (restored.step, restored.data_state, restored.metadata["config"]) == (2, data_state, {"seed": 1})
    assert_same(restored.state, at_step(state, 2))


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 4}])
def test_a_checkpoint_is_restored_to_the_shardings_of_another_mesh(tmp_path, state, sizes):
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2))
        target = start(make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))]))[0]
        restored = checkpoints.restore_latest(target)
    assert_same(restored.state, at_step(state, 2))
    assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(lambda x: x.sharding, target)


def test_the_last_ones_are_kept(tmp_path, state):
    with open_manager(tmp_path, keep_last=2) as checkpoints:
        assert [step for step in range(11) if checkpoints.should_save(step)] == [2, 4, 6, 8, 10]
        for step in (2, 4, 6, 8, 10, 12, 13):
            checkpoints.save(at_step(state, step))
        checkpoints.wait()
        assert checkpoints.steps() == [12, 13]


def test_a_state_donated_right_after_saving_is_saved_unharmed(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = {"kernel": jax.random.normal(jax.random.key(0), (1500, 1000))}
    expected = np.array(params["kernel"] + 1)
    state = advance(init_state(params, GroupedOptimizer({}, {}, lambda _: optax.identity()), ema=False))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            state = advance(state)
        restored = checkpoints.restore_latest(target)
    np.testing.assert_array_equal(restored.state.trainable["kernel"], expected)


def test_other_frozen_weights_are_refused_by_name(tmp_path, state):
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2))
    with (
        open_manager(tmp_path, frozen={"base": "def"}) as checkpoints,
        pytest.raises(CheckpointMismatchError, match=r"own frozen weights.* base \(checkpoint: abc, now: def\)"),
    ):
        checkpoints.restore_latest(state)


def test_another_parameter_layout_is_refused_by_name(tmp_path, state):
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2))
        wider = {"kernel": jnp.zeros((8, 17)), "bias": state.trainable["mapper"]["bias"]}
        other = state.replace(trainable={**state.trainable, "mapper": wider})
        expected = r"trainable/mapper/kernel \(checkpoint: float32\[8, 16\], now: float32\[8, 17\]\)"
        with pytest.raises(CheckpointMismatchError, match=expected):
            checkpoints.restore_latest(other)
        with pytest.raises(CheckpointMismatchError, match=r"ema/identity/bias .*now: absent"):
            checkpoints.restore_latest(state.replace(ema=None))


def empty(item):
    def damage(checkpoint):
        for file in sorted((checkpoint / item).rglob("*")):
            if file.is_file():
                file.unlink()

    return damage


def only_a_folder(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def cut_short(name):
    def damage(checkpoint):
        (file,) = checkpoint.glob(name)
        file.write_bytes(file.read_bytes()[:40])

    return damage


def without_its_facts(checkpoint):
    (checkpoint / "metadata" / "metadata").write_text("{}", encoding="utf-8")


DAMAGES = {
    "empty metadata": empty("metadata"),
    "empty average": empty("ema"),
    "only a folder": only_a_folder,
    "_METADATA cut short": cut_short("ema/_METADATA"),
    "metadata cut short": cut_short("metadata/metadata"),
    "manifest cut short": cut_short("ema/manifest.ocdbt"),
    "no facts": without_its_facts,
    "no average": lambda checkpoint: shutil.rmtree(checkpoint / "ema"),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, state):
    directory = tmp_path_factory.mktemp("two")
    with open_manager(directory) as checkpoints:
        checkpoints.save(at_step(state, 2))
        checkpoints.save(at_step(state, 4))
    return directory


@pytest.fixture(params=[*DAMAGES])
def damaged(request, two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    DAMAGES[request.param](tmp_path / "run" / "4")
    return tmp_path / "run"


# TensorStore reads on for a moment after Orbax has given up a cut manifest.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_is_left_out_and_kept_aside(damaged, state):
    with open_manager(damaged) as checkpoints:
        with pytest.warns(UserWarning, match=r"4 is damaged .*renamed to damaged-4"):
            restored = checkpoints.restore_latest(state)
        assert restored.step == 2
        assert_same(restored.state, at_step(state, 2))
        assert (damaged / "damaged-4").is_dir()
        assert checkpoints.save(at_step(state, 4))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whoever_only_reads_steps_back_too_and_moves_nothing(damaged, state):
    with pytest.warns(UserWarning, match=r"4 is damaged \(.+\); went back to step 2"):
        average, metadata = load_parameters(damaged)
    assert metadata["step"] == 2
    assert_same(average, jax.tree.map(np.asarray, at_step(state, 2).ema))
    assert (damaged / "4").is_dir()
    with pytest.raises(
        ValueError, match=r"expected a readable checkpoint, got .*4: .+; choose another step of \[2, 4\]"
    ):
        load_parameters(damaged, step=4)
    assert load_parameters(damaged, step=2)[1]["step"] == 2


@pytest.mark.parametrize("item", ["data", "optimizer"])
def test_what_only_a_training_needs_may_be_damaged_for_a_reader(two_checkpoints, tmp_path, state, item):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    empty(item)(tmp_path / "run" / "4")
    assert load_parameters(tmp_path / "run")[1]["step"] == 4
    with open_manager(tmp_path / "run") as checkpoints, pytest.warns(UserWarning, match="renamed to damaged-4"):
        assert checkpoints.restore_latest(state).step == 2


def test_a_step_that_is_damaged_again_is_kept_aside_beside_the_first(two_checkpoints, tmp_path, state):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    (tmp_path / "run" / "damaged-4").mkdir()
    only_a_folder(tmp_path / "run" / "4")
    with open_manager(tmp_path / "run") as checkpoints, pytest.warns(UserWarning, match="renamed to damaged-4-2"):
        assert checkpoints.restore_latest(state).step == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "damaged-4", "damaged-4-2"]


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError(13, "Permission denied"), RuntimeError("RESOURCE_EXHAUSTED: no room")]
)
def test_a_machine_that_refuses_leaves_a_sound_checkpoint_where_it_is(two_checkpoints, state, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
    with open_manager(two_checkpoints) as checkpoints, pytest.raises(type(error)):
        checkpoints.restore_latest(state)
    for step in (None, 4):
        with pytest.raises(type(error)):
            load_parameters(two_checkpoints, step=step)
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["2", "4"]


def test_if_every_checkpoint_is_damaged_nothing_is_touched(tmp_path, state):
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2))
    (tmp_path / "2" / "metadata" / "metadata").write_text("{", encoding="utf-8")
    with open_manager(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"a readable checkpoint .*step 2"):
        checkpoints.restore_latest(state)
    assert (tmp_path / "2").is_dir()


def test_parameters_are_read_without_the_run(tmp_path, state):
    saved = at_step(state, 2).replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(saved)
    average, metadata = load_parameters(tmp_path)
    assert metadata["frozen"] == FROZEN
    assert all(isinstance(x, np.ndarray) and not x.any() for x in jax.tree.leaves(average))
    assert_same(load_parameters(tmp_path, ema=False)[0], jax.tree.map(np.asarray, saved.trainable))


def test_reading_parameters_that_are_not_there_is_an_error(tmp_path, state):
    with pytest.raises(ValueError, match="doesn't exist"):
        load_parameters(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected a checkpoint in .*, got none"):
        load_parameters(tmp_path)
    with open_manager(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 2))
    with pytest.raises(ValueError, match=r"checkpoint of step 3 in .*, got the steps \[2\]"):
        load_parameters(tmp_path, step=3)


def test_a_cadence_below_one_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="save_every_steps and keep_last of at least 1, got 0 and"):
        open_manager(tmp_path, save_every_steps=0)


def test_the_fingerprint_depends_on_paths_shapes_dtypes_and_every_bit():
    tree = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.float32(1.5)}
    others = [
        {"c": tree["a"], "b": tree["b"]},
        {**tree, "a": {"kernel": np.zeros((3, 2), np.float32)}},
        {**tree, "a": {"kernel": np.zeros((2, 3), np.int32)}},
        {**tree, "a": {"kernel": -np.zeros((2, 3), np.float32)}},
    ]
    assert len({fingerprint(tree), *map(fingerprint, others)}) == 5
    assert fingerprint({"b": tree["b"], "a": {"kernel": jnp.zeros((2, 3))}}) == fingerprint(tree)
    assert fingerprint({"a": jnp.zeros(2, jnp.bfloat16)}) != fingerprint({"a": jnp.zeros(2, jnp.float16)})
