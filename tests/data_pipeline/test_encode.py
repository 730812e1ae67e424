import dataclasses
import json
import shutil

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
from data_pipeline.prepare.photographs import Photograph, check_photographs, read_photographs
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


def test_a_picture_that_is_listed_twice_is_no_other_photograph():
    twice = [
        photograph("a0", "a"),
        photograph("a0", "a"),
        photograph("b0", "b", pixels=darker(0.5)),
        photograph("b1", "b"),
    ]
    records = list(encode_records(twice, ENCODERS, {"a": 0, "b": 1}, **SIZES))
    means = [float(record["wplus"].mean()) for record in records]
    assert means[0] == means[1] == means[2] > means[3]


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


@pytest.fixture(scope="module")
def photographs_of_two(tmp_path_factory):
    """Written once, for that takes longer than most of the tests; read only."""
    path = tmp_path_factory.mktemp("photographs")
    lines = []
    for index in range(4):
        Image.fromarray(darker(1 - 0.2 * index)).save(path / f"{index}.png")
        Image.fromarray(astronaut.head_mask()).save(path / f"{index}_mask.png")
        entry = {"file": f"{index}.png", "face_mask": f"{index}_mask.png", "landmarks": astronaut.LANDMARKS.tolist()}
        lines.append(json.dumps(entry | {"caption": f"picture {index}", "person": index // 2}))
    (path / "photographs.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(photographs_of_two, tmp_path):
    shutil.copytree(photographs_of_two, tmp_path, dirs_exist_ok=True)
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
        ('{"file": "0.png", "file": "1.png"}', "line 6: .*the key 'file' twice"),
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


MASK = astronaut.head_mask()


@pytest.mark.parametrize("mask", [MASK // 255, MASK > 0, MASK / 255, MASK // 255 * 13, MASK.astype(np.uint16) * 257])
def test_a_mask_of_another_scale_makes_the_same_record(mask):
    (expected,) = encode_records([photograph()], ENCODERS, {"astronaut": 0}, **SIZES)
    (record,) = encode_records([photograph(face_mask=mask)], ENCODERS, {"astronaut": 0}, **SIZES)
    np.testing.assert_array_equal(record["face_mask"], expected["face_mask"])
    assert record["face_mask"].max() == 1.0


def test_the_persons_own_left_and_right_make_the_same_record():
    (expected,) = encode_records([photograph()], ENCODERS, {"astronaut": 0}, **SIZES)
    own = astronaut.LANDMARKS[[1, 0, 2, 4, 3]]
    (record,) = encode_records([photograph(landmarks=own)], ENCODERS, {"astronaut": 0}, **SIZES)
    np.testing.assert_array_equal(record["wplus"], expected["wplus"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"landmarks": astronaut.LANDMARKS / 512}, "coincide within .* pixels; give pixels, not shares"),
        ({"landmarks": astronaut.LANDMARKS[:, ::-1]}, "left and right of eyes and mouth as seen"),
        ({"landmarks": astronaut.LANDMARKS + 5000}, "expected landmarks inside the picture of .*512.* pixels"),
        ({"landmarks": astronaut.LANDMARKS + 200}, "expected eyes and mouth on the face mask, got 0% of"),
        ({"landmarks": astronaut.LANDMARKS / 2}, "expected eyes and mouth on the face mask, got"),
        ({"face_mask": 255 - MASK}, "expected eyes and mouth on the face mask, got 0% of"),
        ({"face_mask": MASK * 0 + 255}, "black outside the head"),
        ({"pixels": np.zeros((512, 512, 3), np.uint8)}, "expected a photograph, got levels from 0 to 0"),
    ],
)
def test_what_does_not_fit_each_other_is_refused(changes, message):
    changed = photograph(**changes)
    with pytest.raises(ValueError, match=f"got 1 of 1 that can't; mend them\n  astronaut.png: .*{message}"):
        check_photographs([changed], size_px=64)
    with pytest.raises(ValueError, match=f"astronaut.png: .*{message}"):
        next(encode_records([changed], ENCODERS, {"astronaut": 0}, **SIZES))


def test_a_face_that_its_latents_do_not_show_is_refused():
    far = np.zeros((4096, 4096, 3), np.uint8)
    far[:512, :512] = astronaut.pixels()
    mask = np.zeros((4096, 4096), np.uint8)
    mask[:512, :512] = MASK
    small = photograph(pixels=far, face_mask=mask)
    assert check_photographs([small], size_px=512)
    with pytest.raises(ValueError, match="expected a face of several pixels, got one that fills .*% of a latent"):
        check_photographs([small], size_px=64)
    with pytest.raises(ValueError, match="astronaut.png: expected a face of several pixels"):
        next(encode_records([small], ENCODERS, {"astronaut": 0}, **SIZES))


def test_a_size_without_whole_latents_is_refused_first(tmp_path):
    message = "expected size_px to be a multiple of 8, got 100; set --size_px=96"
    for call in (
        lambda: read_photographs(tmp_path, size_px=100),
        lambda: check_photographs([photograph()], size_px=100),
        lambda: next(encode_records([photograph()], ENCODERS, {"astronaut": 0}, size_px=100)),
        lambda: write_photographs(tmp_path / "records", {"train": [photograph()]}, ENCODERS, size_px=100),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_list_is_cut_into_lines_at_line_feeds_only_and_may_have_byte_order_marks(folder):
    path = folder / "photographs.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    captions = ["a\u2028b\u2029c", "Zoë\x85 in a café", "naïve \ufeff 李", "plain"]
    lines = [json.dumps(e | {"caption": c}, ensure_ascii=False) for e, c in zip(entries, captions, strict=True)]
    for newline in ("\n", "\r\n"):
        path.write_bytes(newline.join(["\ufeff" + lines[0], *lines[1:3], "\ufeff" + lines[3], ""]).encode())
        photographs = read_photographs(folder)
        assert [p.caption for p in photographs] == captions and [p.line for p in photographs] == [1, 2, 3, 4]


@pytest.mark.parametrize(("encoding", "line", "byte"), [("cp1252", 3, "0xe9"), ("utf-16", 1, "0xff")])
def test_a_list_in_another_encoding_is_named_with_the_line(folder, encoding, line, byte):
    path = folder / "photographs.jsonl"
    path.write_bytes(path.read_text(encoding="utf-8").replace("picture 2", "caf\xe9").encode(encoding))
    message = rf"photographs.jsonl, line {line}: expected UTF-8, got byte {byte}; save the list as UTF-8"
    for skipped in (None, []):
        with pytest.raises(ValueError, match=message) as error:
            read_photographs(folder, skipped)
        assert "\n" not in str(error.value)


def test_a_number_and_its_digits_are_one_person(folder):
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        file.write(line_with(astronaut.LANDMARKS.tolist(), person="1"))
    assert [p.person for p in read_photographs(folder)] == ["0", "0", "1", "1", "1"]


def spoil(folder):
    """A truncated picture on line 1, a small mask on line 3, a line that is no JSON: of six lines, two are good."""
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:5000])
    Image.fromarray(MASK[:256]).save(folder / "2_mask.png")
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        file.write("{\n")


def test_all_that_is_bad_is_listed_at_once_in_the_lists_order(folder):
    spoil(folder)
    with pytest.raises(
        ValueError, match="got 3 of 5 that can't; mend them, or go on without them by --skip_bad"
    ) as error:
        read_photographs(folder)
    lines = str(error.value).split("\n")[1:]
    assert [line.split(": ")[0] for line in lines] == [f"  photographs.jsonl, line {n}" for n in (1, 3, 6)]
    assert all(part in line for part, line in zip(("can't be read", "(256, 512)", "JSON"), lines, strict=True))


def test_the_first_twenty_are_listed_and_how_many_more(folder):
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        file.write("{\n" * 23)
    with pytest.raises(ValueError, match="got 23 of 27") as error:
        read_photographs(folder)
    lines = str(error.value).split("\n")
    assert len(lines) == 22 and "line 25: " in lines[-2] and lines[-1] == "  and 3 more"


def test_bad_photographs_are_left_out_and_named_beside_the_records(folder):
    spoil(folder)
    skipped = []
    photographs = read_photographs(folder, skipped)
    assert [p.picture for p in photographs] == ["1.png", "3.png"]
    (record, _) = encode_records(photographs, ENCODERS, {"0": 0, "1": 1}, **SIZES)  # 0.png is nobody's partner
    assert record["picture"] == "1.png" and (record["wplus"] > -1).all()
    splits = split_by_person(photographs, 0.5)
    counts = write_photographs(folder / "records", splits, ENCODERS, **SIZES, skipped=skipped, checked=True)
    assert counts == {"train": 1, "validation": 1}
    lines = (folder / "records" / "skipped.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [(e["line"], e["file"]) for e in map(json.loads, lines)] == [(1, "0.png"), (3, "2.png"), (6, None)]
    assert "can't be read" in json.loads(lines[0])["reason"]
    assert len(open_records(folder / "records", "train")) == 1


def test_nothing_but_bad_photographs_is_an_error_however(folder):
    (folder / "photographs.jsonl").write_text("{\n{\n", encoding="utf-8")
    with pytest.raises(ValueError, match="got 2 of 2 that can't; mend them\n"):
        read_photographs(folder, [])


def test_writing_checks_photographs_before_any_is_encoded(tmp_path):
    def unused(_):
        raise AssertionError

    bad = photograph("b", "b", face_mask=MASK * 0)
    splits = {"train": [photograph()], "validation": [bad]}
    encoders = Encoders(unused, unused, unused)
    with pytest.raises(ValueError, match="got 1 of 2 that can't.*\n  b: expected a face mask with a face"):
        write_photographs(tmp_path / "records", splits, encoders, **SIZES)
    with pytest.raises(ValueError, match="expected records in every split, got none in validation"):
        write_photographs(tmp_path / "records", splits, ENCODERS, **SIZES, skipped=[])
    assert not list(tmp_path.iterdir())


def test_a_picture_of_which_the_networks_make_nan_is_named_or_skipped(tmp_path):
    dark = photograph("dark.png", "b", pixels=darker(0.2))
    splits = {"train": [photograph(), dark], "validation": [photograph("c", "c")]}
    failing = dataclasses.replace(
        ENCODERS, wplus=lambda x: mean_colour(np.where(x.mean((1, 2, 3)) < -0.7, np.nan, x.T).T)
    )
    with pytest.raises(
        ValueError, match="dark.png: expected finite values of the networks, got NaN or infinity as wplus"
    ):
        write_photographs(tmp_path / "records", splits, failing, **SIZES)
    skipped = []
    counts = write_photographs(tmp_path / "records", splits, failing, **SIZES, skipped=skipped)
    assert counts == {"train": 1, "validation": 1} and [each.file for each in skipped] == ["dark.png"]
    assert "dark.png" in (tmp_path / "records" / "skipped.jsonl").read_text(encoding="utf-8")


def test_what_the_file_system_refuses_is_one_bad_photograph_of_the_list(folder):
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        file.write(line_with(astronaut.LANDMARKS.tolist(), file="x" * 300 + ".png") + "\n")
        file.write(line_with([[True, 1], *astronaut.LANDMARKS.tolist()[1:]]) + "\n")
    skipped = []
    assert len(read_photographs(folder, skipped)) == 4
    assert len(skipped) == 2
    assert "too long" in skipped[0].reason and "expected numbers as landmarks" in skipped[1].reason


def test_one_name_in_two_spellings_is_one_person(folder):
    with (folder / "photographs.jsonl").open("a", encoding="utf-8") as file:
        for name in ("ren\u00e9", "rene\u0301 "):
            entry = json.loads(line_with(astronaut.LANDMARKS.tolist()))
            file.write(json.dumps(entry | {"person": name}) + "\n")
    assert len({photograph.person for photograph in read_photographs(folder)}) == 3
