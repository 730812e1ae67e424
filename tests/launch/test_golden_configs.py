"""What each experiment's config holds is written down, so that no value of it changes unseen.

After a change that is meant, `python -m tests.launch.test_golden_configs` writes the files in `golden/` anew; the differences
belong to the commit.
"""

import difflib
import json
from pathlib import Path

import pytest

from tests.launch.experiments import CONFIGS, PARTS, get_config

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python -m tests.launch.test_golden_configs"
NO_EXPERIMENTS = ("__init__", "common")


def golden_file(name: str, part: str | None) -> Path:
    return GOLDEN / f"{name}_{part}.json" if part else GOLDEN / f"{name}.json"


def rendered(name: str, part: str | None) -> str:
    return json.dumps(get_config(name, part).to_dict(), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize(("name", "part"), CONFIGS, ids=lambda value: value or "")
def test_a_config_is_what_was_written_down(name, part):
    path = golden_file(name, part)
    assert path.is_file(), f"expected {path.relative_to(ROOT)}, found none; run {COMMAND}"
    expected, found = path.read_text(encoding="utf-8").splitlines(), rendered(name, part).splitlines()
    differences = "\n".join(difflib.unified_diff(expected, found, "written down", "now", n=1, lineterm=""))
    assert not differences, f"experiments/{name}.py has changed; if it was meant to, run {COMMAND}\n{differences}"


def test_every_experiment_is_written_down_and_nothing_else():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert sorted(PARTS) == sorted(files - set(NO_EXPERIMENTS))
    assert sorted(GOLDEN.iterdir()) == sorted(golden_file(*config) for config in CONFIGS), f"run {COMMAND}"


def write_all() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in set(GOLDEN.iterdir()) - {golden_file(*config) for config in CONFIGS}:
        path.unlink()
    for config in CONFIGS:
        golden_file(*config).write_text(rendered(*config), encoding="utf-8")
        print(golden_file(*config).relative_to(ROOT))


if __name__ == "__main__":
    write_all()
