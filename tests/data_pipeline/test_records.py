import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline.records import open_records, write_records
from data_pipeline.schema import FIELDS, validate_record
from tests.data_pipeline.made_up_records import SPEC, make_record, make_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "records"
    splits = {"train": make_records(0, 20), "validation": make_records(20, 25)}
    write_records(directory, splits, {"encoder": "none", "size_px": 64})
    return directory


def test_records_come_back_bit_for_bit_in_order(folder):
    train, validation = open_records(folder, "train"), open_records(folder, "validation")
    assert (len(train), len(validation)) == (20, 5)
    for source, start in ((train, 0), (validation, 20)):
        for index, record in enumerate(source):
            expected = make_record(start + index)
            assert list(record) == [field.name for field in FIELDS]
            for field in FIELDS:
                assert record[field.name].dtype == field.dtype
                np.testing.assert_array_equal(record[field.name], expected[field.name])
    validate_record(train[-1], SPEC)
    assert train.metadata == {"encoder": "none", "size_px": 64}


def test_tfds_reads_the_folder_without_tensorflow(folder):
    stored = tfds.builder_from_directory(str(folder)).as_data_source("train")[3]
    assert stored["caption"].decode() == "a portrait, café 3"
    assert stored["picture"] == b"3.png"
    assert stored["wplus"].shape == (SPEC.l, SPEC.d)
    assert "tensorflow" not in sys.modules


def test_nothing_is_overwritten(folder):
    before = sorted(folder.iterdir())
    with pytest.raises(FileExistsError, match="expected a new folder"):
        write_records(folder, {"train": make_records(0, 2)})
    assert sorted(folder.iterdir()) == before


def broken_records():
    yield make_record(0)
    yield make_record(1) | {"wplus": np.zeros((5, 16), np.float32)}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (broken_records, r"record 1 \(1.png\): wplus: expected l=6 as in the specification, got l=5"),
        (lambda: iter(()), "none in train"),
    ],
)
def test_a_failed_writing_leaves_nothing(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        write_records(tmp_path / "records", {"train": records()})
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of records"):
        open_records(tmp_path, "train")
    with pytest.raises(ValueError, match=r"\['train', 'validation'\].*got 'test'"):
        open_records(folder, "test")
    shutil.copytree(folder, tmp_path / "copy")
    next((tmp_path / "copy").glob("*train*")).unlink()
    with pytest.raises(FileNotFoundError, match="train.array_record.*copy the whole folder"):
        open_records(tmp_path / "copy", "train")
