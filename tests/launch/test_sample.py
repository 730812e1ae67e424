"""launch.sample as a user runs it: pictures with recipes, the same again, and one line for what can't be done."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from pidiff_jax.editing.directions import read_directions
from tests.export.tiny_run import make_run
from tests.launch.commands import call

PROMPT = "a person in a red shirt before a blue plain wall"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample") / "run", "linear, sink", sampling={"num_steps": 2})


def sample(*flags):
    return call(*flags, command="sample", JAX_NUM_CPU_DEVICES="1")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_person_is_drawn_and_the_recipe_draws_the_picture_again(workdir, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    result = sample(
        f"--workdir={workdir}", f"--output={first}", "--identity=test:0", f"--prompt={PROMPT}", "--num_images=3"
    )
    assert result.returncode == 0, result.stderr
    names = {f"{number:04d}.{suffix}" for number in range(3) for suffix in ("png", "json")}
    rest = {"identities.safetensors", "grid.png", "grid.json"}
    assert content(first).keys() == {*names, *rest, *(f"attention/{name}" for name in names)}
    result = sample(f"--from-recipe={first / '0002.png'}", f"--output={again}", "--nomark")
    assert result.returncode == 0 and "warning" not in result.stdout, result.stderr
    with Image.open(first / "0002.png") as old, Image.open(again / "0000.png") as new:
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
        assert "trainedAlgorithmicMedia" in old.info["XML:com.adobe.xmp"] and "XML:com.adobe.xmp" not in new.info
    before = content(first)
    result = sample(f"--workdir={workdir}", f"--output={first}", f"--prompt={PROMPT}")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: expected an empty or new folder as --output") and "pass --overwrite" in line
    assert content(first) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "error: expected a --prompt or --from-recipe, got neither"),
        (
            ("--prompt=a", "--identity=test:0", "--region=0,0,1,1", "--region=0,0,1,1"),
            "error: expected a --region for each",
        ),
        (("--prompt=a", "--image=nothing.png"), "error: expected a picture at --image="),
        (("--from-recipe=a.png", "--mask_image=face"), "error: expected --from-recipe alone"),
    ],
)
def test_an_order_that_contradicts_itself_is_one_line(tmp_path, flags, message):
    result = sample(f"--output={tmp_path / 'new'}", f"--workdir={tmp_path}", *flags)
    (line,) = result.stderr.strip().splitlines()
    assert result.returncode == 1 and line.startswith(message)
    assert not (tmp_path / "new").exists()


def test_launch_edit_refuses_a_seed_that_is_none(tmp_path):
    result = call(
        f"--output={tmp_path / 'new'}", f"--workdir={tmp_path}", "--prompt=a", "--seed=-1", "--identity=test:0",
        command="edit",
    )  # fmt: skip
    (line,) = result.stderr.strip().splitlines()
    assert result.returncode == 1 and line.startswith("error: expected --seed of at least 0, got -1")


@pytest.mark.full
def test_directions_are_found_and_gone_along_and_people_are_mixed(workdir, tmp_path):
    found, own = tmp_path / "found", f"--workdir={workdir}"
    result = call(own, f"--output={found}", "--num_codes=200", command="directions", JAX_NUM_CPU_DEVICES="1")
    assert result.returncode == 0, result.stderr
    facts = json.loads((found / "directions.json").read_text(encoding="utf-8"))
    directions = read_directions(found / "directions.safetensors", 10, 64)
    assert facts["method"] == "labels" and "hair_tone" in directions
    assert list(directions) == sorted(facts["variance"], key=lambda name: -facts["variance"][name])
    edit = functools.partial(call, own, f"--prompt={PROMPT}", command="edit", JAX_NUM_CPU_DEVICES="1")
    along = ["--identity=test:0", f"--directions={found / 'directions.safetensors'}", "--attribute=hair_tone"]
    for name, flags, cells in [
        ("along", [*along, "--strengths=-1,0,1"], 3),
        ("mixed", ["--identity=test:0", "--identity=test:1"], 4),
        ("way", ["--identity=test:0", "--identity=test:1", "--interpolate=3", "--by=tokens"], 3),
    ]:
        result = edit(*flags, f"--output={tmp_path / name}")
        assert result.returncode == 0, result.stderr
        assert len(list((tmp_path / name).glob("0*.png"))) == cells and (tmp_path / name / "grid.png").is_file()
    result = edit(*along[:2], "--attribute=wings", f"--output={tmp_path / 'none'}")
    assert result.returncode == 1 and "got 'wings'" in result.stderr and result.stderr.count("\n") == 1
