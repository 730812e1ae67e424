"""What a message tells to do exists: the flags, keys, modules, targets, variables and files that it names."""

import ast
import re
from pathlib import Path

import pytest

from launch.experiment_file import config_items
from tests.launch.experiments import CONFIGS, get_config

ROOT = Path(__file__).parents[1]
FOLDERS = ("launch", "pidiff_jax", "data_pipeline", "experiments")
SPEAKING = ("print", "warn", "report", "write")
HOLE = "\0"


def spoken(tree: ast.AST) -> list[str]:
    """The texts of raise, and of calls that speak to the user; what an f-string puts in is a hole."""
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            nodes.append(node)
        elif (
            isinstance(node, ast.Call)
            and (getattr(node.func, "attr", None) or getattr(node.func, "id", "")) in SPEAKING
        ):
            nodes.append(node)
    return [text for node in nodes for text in _texts(node)]


def _texts(node: ast.AST) -> list[str]:
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else HOLE for v in node.values)]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for child in ast.iter_child_nodes(node) for text in _texts(child)]


def known_flags() -> set[str]:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.py"))
    return {"config", "help", "name", *re.findall(r'(?:DEFINE|define)_\w+\(\s*"([\w-]+)"', sources)}


def known_keys() -> set[str]:
    keys = {key for config in CONFIGS for key, _ in config_items(get_config(*config))}
    return keys | {"KEY"}


def missing(text: str, flags: set[str], keys: set[str]) -> list[str]:
    """Names in a message that stand for nothing."""
    ours = re.sub(r"pip install( --[\w-]+)*", "", text)  # those flags are pip's
    wrong = [f"--{name}" for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", ours) if name not in flags]
    for match in re.finditer(r"\bconfig\.([a-zA-Z_][\w.]*\w|\w+)(.?)", text, re.DOTALL):
        if match[1] not in (*keys, "json", "py") and match[2] != HOLE:
            wrong.append(f"config.{match[1]}")
    for module in re.findall(r"python -m ([\w.]+)", text):
        if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            wrong.append(f"python -m {module}")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wrong += [f"make {name}" for name in re.findall(r"`make ([\w-]+)`", text) if name not in targets]
    wrong += [path for path in re.findall(r"\b(?:docs|experiments)/[\w./]*\w", text) if not (ROOT / path).exists()]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.py"))
    return wrong + [name for name in re.findall(r"\bPIDIFF_\w+", text) if f'"{name}"' not in sources]


def test_every_message_names_what_there_is():
    flags, keys = known_flags(), known_keys()
    wrong = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for text in spoken(ast.parse(path.read_text(encoding="utf-8"))):
                wrong += [f"{path.relative_to(ROOT)}: {name}" for name in missing(text, flags, keys)]
    assert wrong == []


@pytest.mark.parametrize(
    "remedy",
    ["use --no_such_flag", "set config.no_such_key", "run python -m launch.nothing", "see docs/nothing.md",
     "see experiments/nothing.py", "set PIDIFF_NOTHING=1", "`make nothing` first"],
)  # fmt: skip
def test_a_made_up_remedy_is_found(remedy):
    for source in (f"raise ValueError({remedy!r})", f"print(f{remedy!r}, x)", f"report(f'{{x}}: {remedy}')"):
        (text,) = spoken(ast.parse(source))
        assert len(missing(text, known_flags(), known_keys())) == 1
