import numpy as np
import pytest

from data_pipeline.schema import FIELDS, RecordSpec, validate_record
from tests.data_pipeline.made_up_records import SPEC, make_record


def arrays(index: int = 0) -> dict:
    record = make_record(index)
    return {field.name: record[field.name] for field in FIELDS}


def test_sizes_are_read_from_a_record():
    assert RecordSpec.of(arrays()) == SPEC
    validate_record(arrays(), SPEC)


def test_a_record_must_fit_what_the_model_needs():
    validate_record(arrays())
    validate_record(arrays(), {"d": 16})
    with pytest.raises(ValueError, match="latent_mean: expected h=64 as in the specification, got h=8"):
        validate_record(arrays(), {"h": 64})
    assert SPEC.without_latent_size() == {"c": SPEC.c, "l": SPEC.l, "d": SPEC.d, "m": SPEC.m}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wplus": None}, "missing 'wplus'"),
        ({"pixels": np.zeros(3)}, "unknown 'pixels'"),
        ({"text_ids": np.zeros(12, np.int64)}, "text_ids: expected dtype int32, got int64"),
        ({"wplus": np.zeros(16, np.float32)}, r"wplus: expected axes \(l d\), got shape \(16,\)"),
        ({"face_mask": np.zeros((4, 8), np.float32)}, "face_mask: expected h=8 as in latent_mean, got h=4"),
        ({"face_mask": np.full((8, 8), 255, np.float32)}, r"face_mask: expected values in \[0, 1\], got \[255, 255\]"),
        (
            {"face_mask": np.full((8, 8), 1 / 255, np.float32)},
            "face_mask: expected a value of at least 0.5, got 0.0039",
        ),
        ({"wplus": np.full((6, 16), np.nan, np.float32)}, "wplus: expected finite values"),
    ],
)
def test_the_first_wrong_field_is_named_in_one_line(changes, message):
    record = {name: value for name, value in (arrays() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        validate_record(record)
    assert "\n" not in str(error.value)
