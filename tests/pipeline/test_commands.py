"""What the commands make of texts, and what they refuse before a run is opened."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidiff_jax.pipeline.commands import Opening, Writing, _region, parse_scale
from pidiff_jax.pipeline.editing import Edits, draw_edits
from pidiff_jax.pipeline.finding import _labelled

EDITS = Edits(
    prompt="a", identities=["test:0"], seed=0, directions=None, attributes=[], strengths=["1"], layers=None, interpolate=None,
    by="wplus", settings={},
)  # fmt: skip


def test_four_numbers_are_a_box_however_they_are_written():
    assert _region("0, 0, .5, 1") == (0.0, 0.0, 0.5, 1.0)
    assert _region("-.5,0,1e-3,1") == (-0.5, 0.0, 0.001, 1.0)
    assert Path(_region("0,0,.5.5,1")).name == "0,0,.5.5,1"


def test_a_scale_is_a_number_or_one_for_each_level_once():
    assert parse_scale("0.5") == 0.5 and parse_scale("coarse=1, fine=0") == {"coarse": 1.0, "fine": 0.0}
    for text in ("much", "coarse=much", "coarse=1,coarse=2"):
        with pytest.raises(ValueError, match="expected --identity_scale as a number, or as coarse=1,middle=1,fine=0.5"):
            parse_scale(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": ["beard"]}, "expected --attribute with --directions"),
        ({"by": "tokens"}, "expected --by=tokens with --interpolate"),
        ({"interpolate": 3, "layers": "fine"}, "expected --layers without --interpolate"),
        ({"interpolate": 3, "directions": Path("a.npy")}, "expected --interpolate without --directions"),
    ],
)
def test_flags_that_others_make_idle_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        list(draw_edits(Opening(None), Writing(tmp_path / "new"), replace(EDITS, **changes)))
    assert not (tmp_path / "new").exists()


def test_labels_belong_to_the_codes_of_their_pictures(tmp_path):
    path, codes = tmp_path / "labels.csv", np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    path.write_text("age,picture\n40,c.png\n20,a.png\n70,z.png\n", encoding="utf-8")
    known = _labelled(codes, ["a.png", "b.png", "c.png"], path)
    np.testing.assert_array_equal(known.wplus[:, 0, 0], [0, 2])
    np.testing.assert_array_equal(known.labels, [[20], [40]])
    assert known.names == ("age",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a column 'picture' and others"),
        ("picture\na\n", "expected a column 'picture' and others"),
        ("picture,age,age\na,1,2\n", "each with a name of its own, got picture, age, age"),
        ("picture,age,\na,1,2\n", "each with a name of its own"),
        ("picture,age\na,1\na,2\n", "line 3: expected each picture once, got 'a' again"),
        ("picture,age\na,1\nb\n", "line 3: expected a number as 'age', got None"),
        ("picture,age\na,old\n", "line 2: expected a number as 'age', got 'old'"),
        ("picture,age\na,nan\n", "line 2: expected a number as 'age', got 'nan'"),
        ("picture,age\na,1e200\n", "line 2: expected a number as 'age', got '1e200'"),
        ("picture,age\nx,1\n", "expected rows of the records' pictures, such as 'a'"),
    ],
)
def test_labels_that_are_none_are_named_by_their_line(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        _labelled(np.zeros((1, 1, 1), np.float32), ["a"], path)
    assert "\n" not in str(error.value)
