"""The identity of a held-out person is the mean code of photographs that are neither each other nor the gallery's."""

import jax.numpy as jnp
import numpy as np
import pytest

from pidiff_jax.evaluation.subjects import MAX_REFERENCES
from pidiff_jax.worlds.portraits import judges
from pidiff_jax.worlds.portraits.judges import held_out_people
from pidiff_jax.worlds.portraits.sources import pictures, wplus_codes

NUM_PEOPLE = 2


def encode_wplus(pixels):
    """Mean colours of rows in place of an encoder: (b, 10, 18)."""
    return jnp.reshape(pixels.mean(2)[:, :60], (len(pixels), 10, -1))


@pytest.fixture
def drawn(monkeypatch):
    """The (view, picture id) of everything that is rendered."""
    found = []

    def note(split, num_people, per_person, view, first_picture=0, start=0):
        found.extend((view, first_picture + index) for index in range(per_person))
        return pictures(split, num_people, per_person, view, first_picture, start)

    monkeypatch.setattr(judges, "pictures", note)
    return found


def codes_of(picture_id):
    return wplus_codes(encode_wplus, pictures("test", NUM_PEOPLE, 1, "aligned", first_picture=picture_id)["pixels"])


def test_one_photograph_gives_its_own_code_bit_for_bit():
    people = held_out_people("test", NUM_PEOPLE, encode_wplus)
    np.testing.assert_array_equal(people.wplus, codes_of(0))


def test_three_photographs_give_the_mean_of_their_three_codes(drawn):
    people = held_out_people("test", NUM_PEOPLE, encode_wplus, num_references=3)
    aligned = [picture_id for view, picture_id in drawn if view == "aligned"]
    codes = [codes_of(picture_id) for picture_id in aligned]
    assert len(codes) == 3 and not np.allclose(codes[0], codes[1])
    np.testing.assert_allclose(people.wplus, (codes[0] + codes[1] + codes[2]) / 3, rtol=1e-5, atol=1e-6)


def test_no_photograph_is_taken_twice_and_none_is_the_gallerys(drawn):
    many = held_out_people("test", NUM_PEOPLE, encode_wplus, num_references=4)
    picture_ids = [picture_id for _, picture_id in drawn]
    assert len(picture_ids) == len(set(picture_ids)) == 5
    one = held_out_people("test", NUM_PEOPLE, encode_wplus)
    np.testing.assert_array_equal(many.gallery, one.gallery)
    np.testing.assert_array_equal(many.references, one.references)


@pytest.mark.parametrize("count", [0, -1, MAX_REFERENCES + 1])
def test_a_number_of_photographs_that_nobody_can_mean_is_refused(count):
    with pytest.raises(ValueError, match=rf"expected 1 to {MAX_REFERENCES} photographs of each person, got {count}"):
        held_out_people("test", NUM_PEOPLE, encode_wplus, num_references=count)


def test_people_from_a_later_one_on_are_those_of_the_whole_list():
    whole, last = (
        held_out_people("test", n, encode_wplus, start=start) for n, start in ((NUM_PEOPLE, 0), (1, NUM_PEOPLE - 1))
    )
    np.testing.assert_allclose(last.references[0], whole.references[-1], atol=1 / 255)
    np.testing.assert_allclose(last.wplus[0], whole.wplus[-1], atol=1e-3)
