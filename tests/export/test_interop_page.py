"""docs/interop.md as a reader follows it: every block of commands and of Python is run as it stands, in the page's order."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pidiff_jax.convert.clip_tokenizer import clip_tokenizer
from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.single_file import write_single_file
from tests.convert.tiny_stable_diffusion import tiny_pipeline
from tests.export.tiny_run import make_run
from tests.launch.commands import ROOT

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"


def _write_lora(path: Path) -> None:
    rng = np.random.default_rng(0)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 64), (64, 2)))
    write_safetensors(path, {f"{_LORA}.lora_down.weight": down, f"{_LORA}.lora_up.weight": up})


def _lay_out(folder: Path) -> None:
    """What the page says that its reader has."""
    (folder / "experiments").symlink_to(ROOT / "experiments")
    make_run(folder / "runs/quickstart", "linear, sink")
    make_run(folder / "runs/residual", "residual")
    clip_tokenizer().save_pretrained(folder / "words")
    tiny_pipeline("1.x", folder / "words").save_pretrained(folder / "theirs")
    write_single_file(folder / "model.safetensors", open_diffusers_folder(folder / "theirs"))
    for name in ("style", "person"):
        _write_lora(folder / f"{name}.safetensors")


def _run(folder: Path, arguments: list[str], script: str | None = None) -> None:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=script, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, f"{script or shlex.join(arguments)}\n{result.stdout}\n{result.stderr}"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_block_of_the_page_runs_as_it_stands(tmp_path):
    _lay_out(tmp_path)
    blocks = _BLOCK.findall((ROOT / "docs/interop.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"sh", "python"}
    for language, text in blocks:
        if language == "python":
            _run(tmp_path, ["-"], text)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "python"
            _run(tmp_path, arguments)
    assert (tmp_path / "person.png").is_file()
