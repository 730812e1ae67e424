import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.prepare.align import align_face
from data_pipeline.prepare.encode import (
    Encoders,
    encode_records,
    split_by_person,
    square_crop,
    write_photographs,
)
from data_pipeline.prepare.photographs import Photograph, read_photographs
from data_pipeline.records import open_records
from data_pipeline.schema import RecordSpec
from tests.data_pipeline import astronaut

SIZES = {"size_px": 64, "face_size_px": 32}


def pooled(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    b, h, w, c = pixels.shape
    mean = pixels.reshape(b, h // 8, 8, w // 8, 8, c).mean((2, 4))
    return mean, np.full_like(mean, -3.0)


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    return np.tile(pixels.mean((1, 2))[:, None], (1, 6, 1))


def letters(captions: list[str]) -> np.ndarray:
    return np.array([[ord(letter) for letter in caption[:5].ljust(5)] for caption in captions], np.int32)


ENCODERS = Encoders(latents=pooled, wplus=mean_colour, tokenize=letters)


def photograph(picture: str = "astronaut.png", person: str = "astronaut", **changes) -> Photograph:
    fields = {"pixels": astronaut.pixels(), "face_mask": astronaut.head_mask(), "landmarks": astronaut.LANDMARKS}
    return Photograph(picture=picture, caption=astronaut.CAPTION, person=person, **(fields | changes))


def darker(factor: float) -> np.ndarray:
    return (astronaut.pixels() * factor).astype(np.uint8)


def test_a_photograph_becomes_a_record_of_the_schema():
    (record,) = encode_records([photograph()], ENCODERS, {"astronaut": 7}, **SIZES)
    assert record.pop("caption") == astronaut.CAPTION
    assert record.pop("picture") == "astronaut.png"
    assert RecordSpec.of(record) == RecordSpec(h=8, w=8, c=3, l=6, d=3, m=5)
    assert record["person_id"] == 7
    face = align_face(astronaut.pixels(), astronaut.LANDMARKS, 32) / 127.5 - 1.0
    np.testing.assert_allclose(record["wplus"][0], face.mean((0, 1)), atol=1e-6)
    mask = record["face_mask"]
    assert mask[:, :2].max() == 0.0 and mask[4:].max() == 0.0  # the head is in the upper middle
    assert mask[1, 3] == 1.0
    np.testing.assert_allclose(mask.mean(), (astronaut.head_mask() / 255).mean(), atol=1e-3)


def test_the_square_follows_the_face_and_takes_the_mask_along():
    mask = astronaut.head_mask()
    pixels, square_mask = square_crop(photograph(pixels=astronaut.pixels()[:220], face_mask=mask[:220]), 110)
    left = round(astronaut.LANDMARKS[:, 0].mean() - 110)
    np.testing.assert_array_equal(square_mask, mask[:220, left : left + 220])
    expected = astronaut.pixels()[:220, left : left + 220].reshape(110, 2, 110, 2, 3).mean((1, 3))
    assert np.abs(pixels - expected).mean() < 4


def test_the_identity_comes_from_another_photograph_of_the_same_person():
    photographs = [
        photograph("a0", "a"),
        photograph("b0", "b", pixels=darker(0.9)),
        photograph("a1", "a", pixels=darker(0.5)),
        photograph("a2", "a", pixels=darker(0.2)),
    ]
    numbers = {"a": 0, "b": 1}

    def brightness(identity_from: str) -> dict[str, float]:
        records = encode_records(photographs, ENCODERS, numbers, identity_from=identity_from, batch_size=3, **SIZES)
        return {record["picture"]: float(record["wplus"].mean()) for record in records}

    own, other = brightness("same_photograph"), brightness("other_photograph")
    assert own["a0"] > own["b0"] > own["a1"] > own["a2"]
    assert other == {"a0": own["a1"], "a1": own["a2"], "a2": own["a0"], "b0": own["b0"]}


def test_nobody_is_in_two_splits_and_others_do_not_move_when_pictures_are_added():
    photographs = [photograph(f"{person}{i}", str(person)) for person in range(20) for i in range(2)]
    splits = split_by_person(photographs, 0.1)
    people = {name: {p.person for p in split} for name, split in splits.items()}
    assert len(people["validation"]) == 2 and not people["train"] & people["validation"]
    assert sum(len(split) for split in splits.values()) == 40
    again = split_by_person(photographs[::-1][1:], 0.1)
    assert {p.person for p in again["validation"]} == people["validation"]
    with pytest.raises(ValueError, match="at least 2 people"):
        split_by_person(photographs[:2], 0.1)


@pytest.fixture
def folder(tmp_path):
    lines = []
    for index in range(4):
        Image.fromarray(darker(1 - 0.2 * index)).save(tmp_path / f"{index}.png")
        Image.fromarray(astronaut.head_mask()).save(tmp_path / f"{index}_mask.png")
        entry = {"file": f"{index}.png", "face_mask": f"{index}_mask.png", "landmarks": astronaut.LANDMARKS.tolist()}
        lines.append(json.dumps(entry | {"caption": f"picture {index}", "person": index // 2}))
    (tmp_path / "photographs.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path


def test_a_folder_of_photographs_becomes_a_data_set(folder):
    splits = split_by_person(read_photographs(folder), 0.5)
    write_photographs(folder / "records", splits, ENCODERS, **SIZES, metadata={"wplus": "mean colour"})
    train, validation = (open_records(folder / "records", name) for name in ("train", "validation"))
    assert len(train) == len(validation) == 2
    assert {int(train[0]["person_id"]), int(validation[0]["person_id"])} == {0, 1}
    assert train.metadata["wplus"] == "mean colour" and train.metadata["size_px"] == 64


def line_with(landmarks: list, **changes) -> str:
    entry = {"file": "0.png", "face_mask": "0_mask.png", "landmarks": landmarks, "caption": "", "person": 1}
    return json.dumps(entry | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "photographs.jsonl, line 6: expected JSON with file"),
        ("[]", "line 6: expected JSON with file"),
        ('{"file": "0.png"}', "line 6: 0.png: .*'face_mask'"),
        ('{"file": "0.png", "file": "1.png"}', "line 6: .*a key twice"),
        (line_with([[1, 2]] * 5, file="9.png"), "line 6: 9.png: expected the file .*9.png, got none"),
        (line_with([[1, 2]] * 7), "photographs.jsonl, line 6: 0.png: expected 5 or 68 landmarks, got 7"),
        (line_with([[1, 2]] * 4 + [[1, float("nan")]]), "line 6: .*expected finite landmarks, .* in point 5"),
        (line_with([[1] * 5, [2] * 5]), r"line 6: .*expected landmarks \[\[x, y\], ...\], got shape \(2, 5\)"),
        (line_with([[1, 2], [3]]), "line 6: .*expected landmarks .*unequal lengths"),
        (line_with([["1", "2"]] * 5), "line 6: .*expected numbers as landmarks"),
        (line_with([[1, None]] * 5), "line 6: .*expected numbers as landmarks"),
        *(
            (line_with([[1, 2]] * 5, **{key: value}), f"line 6: .*expected .* as '{key}', got")
            for key in ("caption", "person", "file", "face_mask")
            for value in (None, True, 1.5, ["anna"], {}, "\ud800", *([] if key == "caption" else [" "]))
        ),
    ],
)
def test_a_wrong_line_of_the_list_is_named(folder, line, message):
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    # Lines 1 to 4 are good and there is an empty one after them.
    with pytest.raises(ValueError, match=message):
        read_photographs(folder)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected photographs.jsonl in"):
        read_photographs(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face_mask": np.zeros((512, 512), np.uint8)}, "astronaut.png: expected a face mask with a face"),
        ({"landmarks": np.zeros((3, 2))}, "astronaut.png: expected 5 or 68 landmarks"),
        ({"landmarks": np.full((5, 2), np.nan)}, "astronaut.png: expected finite landmarks, got NaN"),
        ({"landmarks": np.ones((5, 2))}, "astronaut.png: .*landmarks that coincide"),
    ],
)
def test_a_photograph_that_makes_no_record_is_named(changes, message):
    broken = dataclasses.replace(photograph(), **changes)
    with pytest.raises(ValueError, match=message):
        next(encode_records([broken], ENCODERS, {"astronaut": 0}, **SIZES))


def test_a_mask_of_another_size_is_refused(folder):
    Image.fromarray(astronaut.head_mask()[:256]).save(folder / "2_mask.png")
    with pytest.raises(ValueError, match=r"2.png: expected a face mask of \(512, 512\) pixels, got \(256, 512\)"):
        list(encode_records(read_photographs(folder), ENCODERS, {"0": 0, "1": 1}, **SIZES))


def test_a_damaged_file_is_named(folder):
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="expected a picture at .*0.png"):
        list(encode_records(read_photographs(folder), ENCODERS, {"0": 0, "1": 1}, **SIZES))


def test_a_picture_too_large_to_open_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="expected a picture at .*0.png, got a file that can't be read .*pixels"):
        list(encode_records(read_photographs(folder), ENCODERS, {"0": 0, "1": 1}, **SIZES))
