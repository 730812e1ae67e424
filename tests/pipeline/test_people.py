"""Whom a user names: photographs, folders of them, files of codes; several photographs are one person."""

import numpy as np
import pytest
from PIL import Image

from pidiff_jax.pipeline.people import encode_photographs, read_people
from tests.pipeline.tiny_pipeline import LAYERS, WIDTH, codes, components_and_params, make_pipeline, picture


class ColourFaces:
    """The code of a picture is its mean level; a dark one has no face."""

    def encode(self, pixels, landmarks=None):
        if pixels.mean() < 20:
            raise ValueError("expected a picture with a face, found none; choose another")
        return np.full((LAYERS, WIDTH), pixels.mean() if landmarks is None else landmarks.sum(), np.float32)

    def mask(self, pixels):
        return np.ones(pixels.shape[:2], np.float32)


def pipeline():
    made = make_pipeline()
    made.__dict__["faces"] = ColourFaces()
    return made


def people(*identities):
    spec = components_and_params()[0].identity_mapper.spec
    return read_people([str(each) for each in identities], make_pipeline().run.world, spec, ColourFaces)


def photographs(folder, count=2):
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(picture(seed) // (seed + 1)).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("none of them", encoding="utf-8")
    return [np.asarray(Image.open(folder / f"{seed}.png")) for seed in range(count)]


def test_several_photographs_are_averaged_whatever_their_form(tmp_path):
    pictures = photographs(tmp_path / "anna")
    expected = np.mean([each.mean() for each in pictures])
    forms = [
        pictures,
        [Image.fromarray(each) for each in pictures],
        tuple(each / 255.0 for each in pictures),
        [tmp_path / "anna" / "0.png", str(tmp_path / "anna" / "1.png")],
    ]
    for form in forms:
        np.testing.assert_allclose(pipeline().encode_identity(form), np.full((LAYERS, WIDTH), expected), rtol=1e-5)
    np.testing.assert_allclose(pipeline().encode_identity(pictures[0])[0, 0], pictures[0].mean(), rtol=1e-5)


def test_a_folder_of_photographs_is_one_person_with_their_mean_code(tmp_path):
    pictures = photographs(tmp_path / "anna", 3)
    ((name, code),) = people(tmp_path / "anna").items()
    assert name == "anna"
    np.testing.assert_array_equal(code, encode_photographs(pictures, ColourFaces()))


def test_photographs_that_nothing_reads_are_named(tmp_path):
    photographs(tmp_path / "anna")
    (tmp_path / "anna/IMG_3.HEIC").touch()
    (tmp_path / "anna/._IMG_3.HEIC").touch()
    with pytest.warns(UserWarning, match=r"left out 1 of another format, such as IMG_3\.HEIC; convert them"):
        people(tmp_path / "anna")


def test_landmarks_go_with_their_photographs():
    first, second = np.ones((5, 2), np.float32), np.full((5, 2), 2, np.float32)
    code = pipeline().encode_identity([picture(0), picture(1)], [first, second])
    np.testing.assert_array_equal(code, np.full((LAYERS, WIDTH), 15))
    with pytest.raises(ValueError, match="expected landmarks of 2 photographs, got 1"):
        pipeline().encode_identity([picture(0), picture(1)], [first])


def test_codes_in_files_are_people_by_their_names(tmp_path):
    from pidiff_jax.convert.files import write_safetensors

    anna, ben, carl = codes(3)
    np.save(tmp_path / "anna.npy", anna)
    write_safetensors(tmp_path / "both.safetensors", {"ben": ben, "carl": carl})
    found = people(tmp_path / "anna.npy", tmp_path / "both.safetensors")
    assert list(found) == ["anna", "ben", "carl"]
    np.testing.assert_array_equal(list(found.values()), [anna, ben, carl])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dark.png", r"dark\.png: expected a picture with a face, found none"),
        ("narrow.npy", r"narrow\.npy: expected a W\+ code of shape \(5, 8\), got \(5, 7\) in 'narrow'"),
        ("holes.npy", r"expected finite numbers, got others in 'holes'"),
        ("text.txt", r"expected a photograph \(\.png, .*\), W\+ codes .* got .*text\.txt"),
        ("empty", r"expected a folder with photographs of a person \(\.png, .*\), found none"),
        ("nobody.png", r"found no file .*nobody\.png; check it"),
    ],
)
def test_who_is_nobody_is_refused_in_one_line(tmp_path, name, message):
    Image.fromarray(picture() // 14).save(tmp_path / "dark.png")
    np.save(tmp_path / "narrow.npy", codes(1)[0, :, 1:])
    np.save(tmp_path / "holes.npy", np.full((LAYERS, WIDTH), np.nan, np.float32))
    (tmp_path / "text.txt").write_text("anna", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        people(tmp_path / name)
    assert "\n" not in str(error.value)


def test_two_people_need_two_names(tmp_path):
    np.save(tmp_path / "anna.npy", codes(1)[0])
    with pytest.raises(ValueError, match="expected one person of each name, got another 'anna'"):
        people(tmp_path / "anna.npy", tmp_path / "anna.npy")


def test_nobody_is_made_of_no_photographs():
    with pytest.raises(ValueError, match="expected photographs of a person, got none"):
        pipeline().encode_identity([])


def test_photographs_may_have_names_with_spaces_and_hidden_files_are_none(tmp_path):
    photographs(tmp_path / "anna (1)")
    (tmp_path / "anna (1)" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "anna (1)" / "folder.png").mkdir()
    assert list(people(tmp_path / "anna (1)")) == ["anna_1_"]
    assert list(people(tmp_path / "anna (1)" / "0.png")) == ["0"]
