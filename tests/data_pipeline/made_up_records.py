"""Records of random numbers in the real schema, at small sizes."""

from collections.abc import Iterator

import numpy as np

from data_pipeline.schema import FIELDS, RecordSpec

SPEC = RecordSpec(h=8, w=8, c=4, l=6, d=16, m=12)


def make_record(index: int, spec: RecordSpec = SPEC) -> dict:
    rng = np.random.default_rng(index)
    record = {field.name: rng.normal(size=spec.shape(field)).astype(np.float32) for field in FIELDS}
    record["text_ids"] = rng.integers(0, 30, spec.m, dtype=np.int32)
    record["face_mask"] = rng.uniform(size=(spec.h, spec.w)).astype(np.float32)
    return record | {"person_id": np.int32(index), "caption": f"a portrait, café {index}", "picture": f"{index}.png"}


def make_records(start: int, stop: int, spec: RecordSpec = SPEC) -> Iterator[dict]:
    return (make_record(index, spec) for index in range(start, stop))
