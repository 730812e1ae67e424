"""What the commands make of texts, and what they refuse before a run is opened."""

from dataclasses import replace
from pathlib import Path

import pytest

from pidiff_jax.pipeline.commands import Opening, Writing, _region
from pidiff_jax.pipeline.editing import Edits, draw_edits

EDITS = Edits(
    prompt="a", identities=["test:0"], seed=0, directions=None, attributes=[], strengths=["1"], layers=None, interpolate=None,
    by="wplus", settings={},
)  # fmt: skip


def test_four_numbers_are_a_box_however_they_are_written():
    assert _region("0, 0, .5, 1") == (0.0, 0.0, 0.5, 1.0)
    assert _region("-.5,0,1e-3,1") == (-0.5, 0.0, 0.001, 1.0)
    assert Path(_region("0,0,.5.5,1")).name == "0,0,.5.5,1"


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
