"""Text files are opened in UTF-8, whatever the machine's locale is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pidiff_jax", "data_pipeline", "launch", "experiments", "benchmarks")


def without_encoding(source: str) -> list[int]:
    """Lines that open a text file by read_text, write_text or open, and don't name its encoding."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, owner = getattr(call.func, "attr", getattr(call.func, "id", None)), getattr(call.func, "value", None)
        words = [
            each.value for each in [*call.args, *(k.value for k in call.keywords)] if isinstance(each, ast.Constant)
        ]
        binary = any(isinstance(word, str) and set(word) <= set("rwaxb+") and "b" in word for word in words)
        of_pillow = getattr(owner, "id", None) == "Image"
        if name in ("read_text", "write_text", "open") and not (binary and name == "open") and not of_pillow:
            lines += [call.lineno] * ("encoding" not in [keyword.arg for keyword in call.keywords])
    return lines


def test_it_is_seen_where_an_encoding_is_missing():
    assert without_encoding('path.read_text()\nopen("x", "a")\npath.open()\npath.write_text("b")') == [1, 2, 3, 4]
    assert without_encoding('open("x", "rb+")\nImage.open(path)\npath.open(encoding="utf-8")') == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_names_its_encoding(folder):  # the linter can't where it doesn't know that something is a Path
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []
