"""The people of validation records: the first ones, with as many photographs of each as are asked for."""

import numpy as np
import pytest

from data_pipeline.sources import ArraySource
from pidiff_jax.worlds import open_world
from pidiff_jax.worlds.photographs.world import PhotographsWorld, first_records
from tests.launch.experiments import get_config

# Person 7 has three photographs, 4 two, 9 one.
PEOPLE = np.array([7, 4, 7, 9, 4, 7], np.int32)
SOURCE = ArraySource({"person_id": PEOPLE, "wplus": np.arange(6, dtype=np.float32)[:, None, None]})


def numbers(num_people, num_records):
    return [[int(record["wplus"][0, 0]) for record in own] for own in first_records(SOURCE, num_people, num_records)]


def test_the_first_people_come_with_their_first_records():
    assert numbers(3, 1) == [[0], [1], [3]]
    assert numbers(2, 2) == [[0, 2], [1, 4]]
    assert numbers(1, 3) == [[0, 2, 5]]


def test_fewer_people_than_asked_for_are_all_there_are():
    assert numbers(5, 1) == [[0], [1], [3]]


@pytest.mark.parametrize(("num_people", "num_records", "there"), [(2, 3, "2 of person 4"), (3, 2, "1 of person 9")])
def test_a_person_with_too_few_photographs_is_named(num_people, num_records, there):
    with pytest.raises(
        ValueError, match=f"expected {num_records} photographs .* got {there} in the validation records"
    ):
        first_records(SOURCE, num_people, num_records)


def test_the_world_tells_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(PhotographsWorld, "_records", lambda self, split: SOURCE)
    config = get_config("ffhq")
    config.evaluation.num_preview_people = 2
    world = open_world(config)
    world.check_references(2)
    with pytest.raises(ValueError, match="got 2 of person 4"):
        world.check_references(3)
    with pytest.raises(ValueError, match="expected 1 to 100 photographs of each person, got 0"):
        world.check_references(0)
