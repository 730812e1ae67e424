"""The command that prepares photographs: what is wrong with them is said before a network is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipeline.records import open_records
from tests.data_pipeline import astronaut
from tests.launch.commands import call_script

ROOT = Path(__file__).parents[2]
SCRIPT = """
import runpy, sys
import numpy as np
from data_pipeline.prepare import encode, networks

def load(*_, **__):
    print("networks are loaded", file=sys.stderr)
    latents = lambda x: (np.zeros((len(x), 8, 8, 4)), np.zeros((len(x), 8, 8, 4)))
    return encode.Encoders(latents, lambda x: np.zeros((len(x), 18, 512)), lambda texts: np.zeros((len(texts), 7), np.int32))

networks.load_encoders = load
runpy.run_module("launch.prepare", {}, "__main__")
"""


@pytest.fixture
def needed(tmp_path) -> list[str]:
    """41 photographs of five people, the last one truncated; and files that are there in place of networks."""
    Image.fromarray(astronaut.pixels()).save(tmp_path / "good.png")
    Image.fromarray(astronaut.head_mask()).save(tmp_path / "mask.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:9999])
    entry = {"face_mask": "mask.png", "landmarks": astronaut.LANDMARKS.tolist(), "caption": "café"}
    lines = [
        json.dumps({**entry, "file": "cut.png" if i == 40 else "good.png", "person": i % 5}, ensure_ascii=False)
        for i in range(41)
    ]
    (tmp_path / "photographs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "vae").mkdir()
    for name in ("vae/config.json", "e4e.pt"):
        (tmp_path / name).touch()
    output = tmp_path / "records"
    return [f"--photographs={tmp_path}", f"--base={tmp_path}", f"--e4e={tmp_path / 'e4e.pt'}", f"--output={output}"]


def prepare_where_text_is_ascii(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_last_of_41_photographs_is_bad_and_it_is_said_first(needed, tmp_path):
    result = call_script(SCRIPT, *needed)
    assert result.returncode == 1, result.stderr
    first, second = result.stderr.strip().split("\n")
    assert (
        first.startswith("error: expected photographs that can be used, got 1 of 41 that can't")
        and "--skip_bad" in first
    )
    assert second.startswith("  photographs.jsonl, line 41: cut.png: expected a picture at ")
    assert not (tmp_path / "records").exists()


def test_skip_bad_goes_on_without_it_and_tfds_reads_the_folder(needed, tmp_path):
    result = prepare_where_text_is_ascii(*needed, "--skip_bad", "--size_px=64")
    assert result.returncode == 0, result.stderr
    assert f"skipped 1 photographs, see {tmp_path / 'records' / 'skipped.jsonl'}\n" in result.stderr
    (skipped,) = (tmp_path / "records" / "skipped.jsonl").read_text(encoding="utf-8").strip().split("\n")
    assert json.loads(skipped)["line"] == 41 and json.loads(skipped)["file"] == "cut.png"
    train, validation = (open_records(tmp_path / "records", split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 40
    assert f"{len(train)} records for train, {len(validation)} records for validation" in result.stdout
    stored = tfds.builder_from_directory(str(tmp_path / "records")).as_data_source("train")[0]
    assert stored["caption"].decode() == "café" and np.max(stored["face_mask"]) == 1.0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--size_px=100", "expected size_px to be a multiple of 8, got 100; set --size_px=96"),
        ("--validation_fraction=nan", "expected --validation_fraction in [0, 1], got nan"),
        ("--e4e=nowhere.pt", "expected a checkpoint of encoder4editing at nowhere.pt, found none"),
        ("--base=nowhere", "expected a Stable Diffusion folder"),
    ],
)
def test_wrong_flags_are_refused_before_photographs_are_read(needed, argument, message):
    result = call_script(SCRIPT, *needed, argument)
    assert result.returncode == 1
    assert len(result.stderr.strip().split("\n")) == 1 and result.stderr.startswith(f"error: {message}")
