"""A recipe draws its picture again bit for bit, or says what keeps it from that; and a picture's file says what it is."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from PIL import Image

from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.pipeline.commands import IDENTITIES, Writing, _differences, draw_recipe, write_pictures
from pidiff_jax.pipeline.recipe import RECIPE_KEY, Job, code_hash, read_recipe, save_picture
from tests.pipeline.tiny_pipeline import (
    SIZE_PX,
    codes,
    components_and_params,
    draw,
    make_pipeline,
    picture,
    shared_pipeline,
)

PROMPT, XMP = "a person in a red shirt", "XML:com.adobe.xmp"
SYNTHETIC, PARTLY = (
    "digitalsourcetype/trainedAlgorithmicMedia",
    "digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
)


def keep(folder, output, people, index=0, **options):
    """Writes a picture and its people; gives its path and the recipe in it."""
    write_safetensors(folder / IDENTITIES, {code_hash(code): code for code in people})
    path = folder / "0000.png"
    save_picture(path, output.images[index], output.recipes[index], **options)
    return path, read_recipe(path)


def inpainted(folder, **options):
    original, mask = folder / "original.png", folder / "mask.png"
    Image.fromarray(picture()).save(original)
    half = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    half[:, :8] = 255
    Image.fromarray(half).save(mask)
    return draw(PROMPT, codes(1)[0], image=original, mask_image=mask, **options)


def changed_as_a_whole(folder):
    Image.fromarray(picture()).save(folder / "original.png")
    return draw(PROMPT, codes(1)[0], image=folder / "original.png", strength=0.5)


def in_regions(folder):
    return draw(PROMPT, codes(2), regions=[(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)])


def of_a_batch_that_was_not_full(folder):
    pipeline = shared_pipeline()
    return pipeline(PROMPT, codes(1)[0], seed=3, num_images=5, sampler="euler_ancestral", show_progress=False)


KINDS = {
    "inpainted": (inpainted, 1, 0),
    "changed as a whole": (changed_as_a_whole, 1, 0),
    "in regions": (in_regions, 2, 0),
    "the fifth of five": (of_a_batch_that_was_not_full, 1, 4),
    "the third of five": (of_a_batch_that_was_not_full, 1, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_draws_the_picture_again_bit_for_bit(kind, tmp_path):
    make, num_people, index = KINDS[kind]
    output = make(tmp_path)
    path, recipe = keep(tmp_path, output, codes(num_people), index)
    again, _ = draw_recipe(shared_pipeline(), recipe, path)
    np.testing.assert_array_equal(again.pixels[0].view(np.uint32), output.pixels[index].view(np.uint32))
    assert (
        again.recipes[0].to_json() == recipe.to_json() == path.with_suffix(".json").read_text(encoding="utf-8").strip()
    )


def test_another_picture_in_the_place_of_the_old_one_is_named(tmp_path):
    path, recipe = keep(tmp_path, inpainted(tmp_path), codes(1))
    Image.fromarray(picture(1)).save(tmp_path / "original.png")
    with pytest.raises(ValueError, match="expected the picture .* as the recipe knows it, got another") as error:
        draw_recipe(shared_pipeline(), recipe, path)
    assert "\n" not in str(error.value)


def test_a_code_that_is_missing_is_named_before_anything_is_drawn(tmp_path, monkeypatch):
    path, recipe = keep(tmp_path, draw(PROMPT, codes(1)[0]), codes(1, seed=1))
    monkeypatch.setattr(shared_pipeline()._sampler, "draw", lambda *_, **__: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=r"expected the W\+ code of the recipe's person in .*found none with its hash"):
        draw_recipe(shared_pipeline(), recipe, path)


def test_other_weights_and_devices_are_said():
    (recipe,) = draw(PROMPT, codes(1)[0]).recipes
    assert list(_differences(shared_pipeline(), recipe)) == []
    _, params = components_and_params()
    for part, name in (("mapper", "adapter"), ("vae", "vae")):
        moved = {**params, part: jax.tree.map(lambda x: x + 1, params[part])}
        (line,) = _differences(make_pipeline(params=moved), recipe)
        assert line == f"warning: the run has other weights than the recipe's ({name}); the picture is another one"
    (line,) = _differences(shared_pipeline(), replace(recipe, devices={"platform": "tpu"}))
    assert "the picture may differ in its last bits" in line


def test_a_picture_says_in_its_file_what_made_it(tmp_path):
    output = draw(PROMPT)
    path, recipe = keep(tmp_path, output, codes(1))
    with Image.open(path) as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(output.images[0]))
        assert json.loads(saved.info[RECIPE_KEY])["prompt"] == PROMPT and SYNTHETIC in saved.info[XMP]
    assert recipe == read_recipe(path.with_suffix(".json")) and (recipe.prompt, recipe.seed) == (PROMPT, 0)


def test_a_picture_that_was_changed_is_a_composite(tmp_path):
    path, _ = keep(tmp_path, inpainted(tmp_path), codes(1))
    with Image.open(path) as saved:
        assert PARTLY in saved.info[XMP]


def test_without_the_mark_the_recipe_is_all_that_is_said(tmp_path):
    path, _ = keep(tmp_path, draw(PROMPT), codes(1), mark=False)
    with Image.open(path) as saved:
        assert RECIPE_KEY in saved.info and XMP not in saved.info


def test_what_holds_no_recipe_is_refused_in_one_line(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "photograph.png")
    (tmp_path / "list.json").write_text('{"prompt": "a person"}', encoding="utf-8")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    for name in ("photograph.png", "list.json", "text.png"):
        with pytest.raises(ValueError, match="expected (the recipe of a picture|a picture or recipe)") as error:
            read_recipe(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="expected a picture or recipe at .*nothing.png, found none"):
        read_recipe(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", 2**40), ("place", [9, 2]), ("people", [{}]), ("people", [{"source": 5, "sha256": ""}]),
     ("regions", [5]), ("run", {"folder": None, "step": 1, "fingerprints": {}})],
)  # fmt: skip
def test_a_recipe_that_somebody_spoiled_is_refused_in_one_line(tmp_path, name, value):
    path, recipe = keep(tmp_path, draw(PROMPT, codes(1)[0]), codes(1))
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(json.dumps(json.loads(recipe.to_json()) | {name: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"the recipe .*spoiled.json: expected {name}") as error:
        read_recipe(spoiled)
    assert "\n" not in str(error.value)


def test_a_recipe_that_an_editor_saved_is_read_in_utf_8_alone(tmp_path):
    recipe = replace(draw(PROMPT, codes(1)[0]).recipes[0], prompt="in a café")
    text = json.dumps(asdict(recipe), ensure_ascii=False)
    (tmp_path / "marked.json").write_text(text, encoding="utf-8-sig")
    assert read_recipe(tmp_path / "marked.json") == recipe
    (tmp_path / "other.json").write_text(text, encoding="cp1252")
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    (tmp_path / "twice.json").write_text(text.replace('"seed": 0', '"seed": 0, "seed": 1'), encoding="utf-8")
    for name, message in (
        ("other", "expected a recipe in UTF-8 at .*other.json"),
        ("deep", "expected the recipe of"),
        ("twice", r"twice.json, got a mistake \(the key 'seed' twice\)"),
    ):
        with pytest.raises(ValueError, match=message):
            read_recipe(tmp_path / f"{name}.json")


def test_the_mask_of_a_region_has_changed(tmp_path):
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    output = draw(PROMPT, codes(2), regions=[str(tmp_path / "mask.png"), (0.5, 0.0, 1.0, 1.0)])
    path, recipe = keep(tmp_path, output, codes(2))
    assert draw_recipe(shared_pipeline(), recipe, path)[0].recipes[0] == output.recipes[0]
    Image.fromarray(mask.T).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="expected the mask .*mask.png as the recipe knows it, got another"):
        draw_recipe(shared_pipeline(), recipe, path)


def test_a_copy_of_an_edited_picture_can_be_drawn_again_too(tmp_path):
    first, copy = Writing(tmp_path / "first"), Writing(tmp_path / "copy")
    job = Job(PROMPT, None, 4, (("anna.png, beard +1 (all)", codes(1)[0]),))
    for writing, source in ((first, None), (copy, first.folder / "0000.png")):
        writing.folder.mkdir()
        if source is None:
            output = shared_pipeline().draw([job], shared_pipeline().settings(), show_progress=False)
        else:
            output, job = draw_recipe(shared_pipeline(), read_recipe(source), source)
        list(write_pictures(writing, output, [job]))
    again, _ = draw_recipe(shared_pipeline(), read_recipe(copy.folder / "0000.png"), copy.folder / "0000.png")
    np.testing.assert_array_equal(again.pixels, output.pixels)
    (copy.folder / IDENTITIES).unlink()
    with pytest.raises(
        ValueError, match="expected the W\\+ code of the recipe's person in .*, found none with its hash"
    ):
        draw_recipe(shared_pipeline(), read_recipe(copy.folder / "0000.png"), copy.folder / "0000.png")


def test_pictures_that_are_written_over_leave_the_codes_of_those_that_stay(tmp_path):
    pipeline, writing = shared_pipeline(), Writing(tmp_path, overwrite=True)
    for code in codes(2):
        job = Job(PROMPT, None, 0, ((None, code),))
        list(write_pictures(writing, pipeline.draw([job], pipeline.settings(), show_progress=False), [job]))
    assert read_tensors(tmp_path / IDENTITIES).keys() == {code_hash(code) for code in codes(2)}
