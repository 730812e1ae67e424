"""Outputs that can't be written, or fail while they are, leave what was there as it was."""

import errno
import os
import re

import pytest

from pidiff_jax.convert import files
from pidiff_jax.convert.conversion import convert
from tests.launch.commands import call
from tests.launch.wrong_files import assert_refused, broken_link, content


def output(x, path):
    return {"source": x.folder, "output": x.path / path}


def existing(x, name):
    (x.path / name).write_text("mine", encoding="utf-8")
    return output(x, name)


# What is wrong -> how it is made, and what is said.
KINDS = {
    "a file at the output": (
        lambda x: existing(x, "mine.safetensors"),
        r"expected nothing at .*mine\.safetensors, got a file or folder; choose",
    ),
    "a folder at the output": (
        lambda x: output(x, "."),
        "expected nothing at .*, got a file or folder; choose another name",
    ),
    "a broken link at the output": (
        lambda x: output(x, broken_link(x, "model")),
        "expected nothing at .*model, got a file or folder",
    ),
    "a broken link at the file's output": (
        lambda x: output(x, broken_link(x)),
        r"expected nothing at .*model\.safetensors, got a file",
    ),
    "an output in the source": (
        lambda x: (folder := x.copy()) and {"source": folder, "output": folder / "new"},
        "expected --output outside of the folder .*model, got .*new",
    ),
    "an output in the place of the source": (
        lambda x: (folder := x.copy()) and {"source": folder, "output": folder},
        "expected nothing at .*model",
    ),
    "an output below a file": (
        lambda x: existing(x, "mine") | {"output": x.path / "mine" / "model"},
        r"expected a folder that can be written to at .*mine, got: .*; choose another place",
    ),
    "an output deep below a file": (
        lambda x: existing(x, "mine") | {"output": x.path / "mine" / "a" / "b.safetensors"},
        "expected a folder that can be written to at .*mine/a, got: ",
    ),
    "an output that could hold code": (
        lambda x: output(x, "model.ckpt"),
        r"expected a folder or a \.safetensors file as output, got .*model\.ckpt",
    ),
    "sizes that one file can't tell": (
        lambda x: x.config("unet", attention_head_dim=4) | {"output": x.path / "model.safetensors"},
        r"expected heads and norms of .*: write a folder",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_output_is_refused_in_one_line_and_nothing_is_overwritten(kind, place):
    make, message = KINDS[kind]
    given = {"output": place.path / "new" / "deep" / "model", **make(place)}
    assert_refused(place, message, lambda: convert(**given))


def test_the_command_overwrites_nothing_either(place):
    (place.path / "model").write_text("mine", encoding="utf-8")
    before = content(place.path)
    result = call(f"--source={place.folder}", f"--output={place.path / 'model'}", command="convert")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match(r"error: expected nothing at .*model, got a file or folder; .*\n\Z", result.stderr)
    assert content(place.path) == before


@pytest.mark.parametrize("output", ["model", "model.safetensors"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"expected room for .*, got: No space left on device; make room, or choose another place"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_is_full_or_fails_in_the_middle_is_left_as_it_was(place, monkeypatch, output, number, message):
    before = content(place.path)

    def fail(_):
        assert content(place.path) != before  # a draft is there
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=message) as error:
        convert(place.folder, place.path / "new" / output)
    assert "\n" not in str(error.value)
    assert content(place.path) == before


def test_a_folder_that_cannot_be_written_to_is_named(place, monkeypatch):
    """The tests may run as root, who can write anywhere."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    before = content(place.path)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    for output in ("model", "model.safetensors"):
        with pytest.raises(
            ValueError, match="expected a folder that can be written to at .*new, got: Permission denied; choose"
        ):
            convert(place.folder, place.path / "new" / output)
    assert content(place.path) == before


def test_what_is_made_at_the_output_meanwhile_is_left_as_it_is(place, monkeypatch):
    output = place.path / "model"
    monkeypatch.setattr(files.os, "fsync", lambda _: output.write_text("mine", encoding="utf-8"))
    with pytest.raises(FileExistsError, match="expected nothing at .*model, got a file or folder"):
        convert(place.folder, output)
    assert output.read_text(encoding="utf-8") == "mine" and [x.name for x in place.path.iterdir()] == ["model"]
