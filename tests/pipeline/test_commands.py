"""What the commands make of texts, and what they refuse before a run is opened."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidiff_jax.pipeline.commands import Opening, Order, Writing, _region, draw_order, parse_scale
from pidiff_jax.pipeline.editing import Edits, draw_edits
from pidiff_jax.pipeline.finding import Search, _labelled, find_directions

EDITS = Edits(
    prompt="a", identities=["test:0"], seed=0, directions=None, attributes=[], strengths=["1"], layers=None, interpolate=None,
    by="wplus", settings={},
)  # fmt: skip

ORDER = Order(
    prompts=["a"], identities=["test:0"], regions=[], image=None, mask_image=None, negative_prompt=None, seed=0, num_images=1,
    settings={},
)  # fmt: skip
SEARCH = Search(Path("tests"), None, None, 10, 2, "a")


def test_four_numbers_are_a_box_however_they_are_written():
    assert _region("0, 0, .5, 1") == (0.0, 0.0, 0.5, 1.0)
    assert _region("-.5,0,1e-3,1") == (-0.5, 0.0, 0.001, 1.0)
    with pytest.raises(FileNotFoundError, match="expected a picture at --region=0,0,.5.5,1, found none"):
        _region("0,0,.5.5,1")


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


@pytest.mark.parametrize("picture", ["a\u2028b", "a\x85b", "a\x0bb", "a\nb"])
def test_a_name_with_another_line_separator_is_one_name(tmp_path, picture):
    (tmp_path / "labels.csv").write_bytes(f'\ufeffpicture,age\r\n"{picture}",1\r\n'.encode())
    known = _labelled(np.zeros((1, 1, 1), np.float32), [picture], tmp_path / "labels.csv")
    np.testing.assert_array_equal(known.labels, [[1]])


PNG = Path("docs/assets/way.webp")
NOTHING = [
    (draw_order, replace(ORDER, identities=["nobody.png"]), "found no file nobody.png"),
    (draw_order, replace(ORDER, identities=["gs://a/anna.png"]), "this machine for --identity, got 'gs://a/anna.png'"),
    (draw_order, replace(ORDER, identities=["gs://a/b:train:0"]), "this machine for --identity, got 'gs://a/b'"),
    (draw_order, replace(ORDER, image=PNG, mask_image="s3://b/x.png"), "for --mask_image, got 's3://b/x.png'"),
    (draw_order, replace(ORDER, image=PNG, mask_image="x.png"), "expected a picture at --mask_image=x.png, found none"),
    (draw_order, replace(ORDER, regions=["x.png"]), "expected a picture at --region=x.png, found none"),
    (draw_order, replace(ORDER, num_images=0), "expected --num_images of at least 1, got 0"),
    (draw_order, replace(ORDER, seed=-1), "expected --seed of at least 0, got -1"),
    (draw_order, replace(ORDER, settings={"sampler": "dimm"}), "expected a sampler of ddpm, ddim"),
    (draw_edits, replace(EDITS, settings={"num_steps": 0}), "expected --num_steps of at least 1, got 0"),
    (draw_edits, replace(EDITS, identities=["nobody.png"]), "found no file nobody.png"),
    (draw_edits, replace(EDITS, directions=Path("x.npy")), "expected a file at --directions=x.npy, found none"),
    (find_directions, replace(SEARCH, labels=Path("x.csv")), "expected a CSV file at --labels=x.csv, found none"),
    (find_directions, replace(SEARCH, records=Path("x")), "expected a folder of records at --records=x, found none"),
]


@pytest.mark.parametrize(("draw", "order", "message"), NOTHING)
def test_what_is_not_there_or_cannot_be_meant_is_said_before_a_run_is_opened(
    tmp_path, monkeypatch, draw, order, message
):
    monkeypatch.setattr(Opening, "pipeline", lambda *_: pytest.fail("a run was opened"))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        list(draw(Opening(None), Writing(tmp_path / "new"), order))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a column 'picture' and others"),
        ("picture\na\n", "expected a column 'picture' and others"),
        ("picture,age,age\na,1,2\n", "each with a name of its own, got picture, age, age"),
        ("picture,age,\na,1,2\n", "each with a name of its own"),
        ("picture,age\na,1\na,2\n", "line 3: expected each picture once, got 'a' again"),
        ("picture,age\na,1\nb\n", "line 3: expected 2 values, got 1"),
        ("picture,age\na,1,2\n", "line 2: expected 2 values, got 3"),
        ('picture,age\n"a,1\n', "line 2: expected CSV, got: unexpected end of data"),
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
