import itertools

import numpy as np
import pytest

from data_pipeline.loader import make_loader
from data_pipeline.records import open_records, write_records
from data_pipeline.sources import ArraySource
from tests.data_pipeline.made_up_records import make_records

SOURCE = ArraySource({"number": np.arange(23, dtype=np.int32), "pair": np.arange(46, dtype=np.float32).reshape(23, 2)})


def numbers(loader, num_batches: int) -> list[list[int]]:
    return [batch["number"].tolist() for batch in itertools.islice(loader, num_batches)]


def loader(**changes):
    return make_loader(SOURCE, **({"batch_size": 4, "seed": 0, "shuffle": True} | changes))


def test_batches_are_numpy_dicts_with_fields_that_belong_together():
    for batch in itertools.islice(loader(), 8):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "number": ((4,), "int32"),
            "pair": ((4, 2), "float32"),
        }
        np.testing.assert_array_equal(batch["pair"][:, 0], 2 * batch["number"])


def test_each_epoch_has_every_record_once_in_a_new_order():
    seen = np.concatenate(numbers(loader(num_epochs=4), 100))
    assert len(seen) == 23 * 4
    epochs = seen.reshape(4, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers(loader(seed=1), 3) != numbers(loader(seed=2), 3)
    assert np.concatenate(numbers(loader(shuffle=False, num_epochs=1), 9)).tolist() == list(range(20))


@pytest.mark.parametrize("num_batches", [0, 3, 8])
def test_a_restored_position_goes_on_as_if_never_interrupted(num_batches):
    whole = numbers(loader(), 14)
    interrupted = loader()
    assert numbers(interrupted, num_batches) == whole[:num_batches]
    state = interrupted.get_state()
    resumed = loader()
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert numbers(resumed, 14 - num_batches) == whole[num_batches:]


def test_a_position_in_other_data_is_refused():
    with pytest.raises(ValueError, match="expected a position in data with .*'seed': 1"):
        loader(seed=1).set_state(loader().get_state())


def test_the_parts_of_all_processes_are_the_batches_of_one():
    whole = numbers(loader(), 10)
    shares = [numbers(loader(batch_size=2, process_index=i, process_count=2), 10) for i in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_worker_processes_read_the_same_batches_and_can_be_changed_on_resuming(tmp_path):
    write_records(tmp_path / "records", {"train": make_records(0, 12)})
    source = open_records(tmp_path / "records", "train")
    settings = {"batch_size": 3, "seed": 5, "shuffle": True}
    expected = [batch["person_id"].tolist() for batch in itertools.islice(make_loader(source, **settings), 6)]
    with_workers = make_loader(source, **settings, num_workers=2)
    first = [next(with_workers)["person_id"].tolist() for _ in range(3)]
    state = with_workers.get_state()
    with_workers.close()
    threads = make_loader(source, **settings)
    threads.set_state(state)
    assert first + [next(threads)["person_id"].tolist() for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 24}, r"at least one batch \(24\) of records, got 23"),
        ({"batch_size": 8, "process_count": 3}, r"at least one batch \(24\)"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"process_index": 2, "process_count": 2}, "process_index < process_count"),
    ],
)
def test_sizes_that_make_no_batch_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        loader(**changes)


def test_arrays_of_different_length_make_no_source():
    with pytest.raises(ValueError, match="one length, got {'a': 2, 'b': 3}"):
        ArraySource({"a": np.zeros(2), "b": np.zeros(3)})
