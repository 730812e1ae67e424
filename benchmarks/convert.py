"""Memory and time of converting Stable Diffusion 1.5 (random weights, float32, 4.3 GB), against diffusers' own way.

python benchmarks/convert.py --folder=convert_benchmark      # 13 GB of disk, which are free again at the end

Every job is a process of its own; `peak` is its largest resident memory, pages of mapped files among it, as a share of the
model's size on disk. What Python and the libraries take by themselves is in it, and named beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CONVERT = "import runpy; runpy.run_module('launch.convert', {}, '__main__')"
_LOAD = "from pidiff_jax.convert.base_model import open_base_model; model = open_base_model(Path(sys.argv[1])).load()"
_WRITE = """
from pidiff_jax.convert.base_model import open_base_model
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
model = open_base_model(Path(sys.argv[1]))
write_diffusers_folder(
    Path(sys.argv[2]), model.load(), unet_spec=model.unet_spec, vae_spec=model.vae_spec, text_spec=model.text_spec,
    tokenizer=model.tokenizer, schedule=model.schedule, latent_size=model.latent_size,
)
"""
_THEIRS = """
from diffusers import StableDiffusionPipeline
StableDiffusionPipeline.from_single_file(sys.argv[1], config=sys.argv[2], local_files_only=True).save_pretrained(sys.argv[3])
"""
_MAKE = """
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from pidiff_jax.convert.clip_tokenizer import clip_tokenizer
text = CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    bos_token_id=49406, eos_token_id=49407,
)
vae = AutoencoderKL(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
scheduler = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)
StableDiffusionPipeline(
    vae=vae, text_encoder=CLIPTextModel(text), tokenizer=clip_tokenizer(), scheduler=scheduler,
    unet=UNet2DConditionModel(cross_attention_dim=768), safety_checker=None, feature_extractor=None,
    requires_safety_checker=False,
).save_pretrained(sys.argv[1])
"""


def main() -> None:
    """Prints a line per job, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the model and what it becomes")
    args = parser.parse_args()
    with _new_folder(args.folder) as folder:
        model, single, again = (folder / name for name in ("model", "model.safetensors", "again"))
        _run(_MAKE, model)
        size = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
        jobs = {
            "nothing but imports": ("import pidiff_jax.convert.conversion", ()),
            "folder to one file": (_CONVERT, (f"--source={model}", f"--output={single}")),
            "one file to a folder": (_CONVERT, (f"--source={single}", f"--output={again}")),
            "folder into arrays": (_LOAD, (model,)),
            "one file into arrays": (_LOAD, (single,)),
            "arrays to a folder": (_WRITE, (model, folder / "written")),
            "one file to a folder by diffusers": (_THEIRS, (single, model, folder / "theirs")),
        }
        results = {}
        for name, (script, arguments) in jobs.items():
            peak, seconds = _run(script, *arguments)
            results[name] = {"peak": round(peak / size, 3), "seconds": round(seconds, 1)}
            print(
                f"{name}: {peak / 1e9:.2f} GB, {peak / size:.2f} of the model's size, {seconds:.0f} s", file=sys.stderr
            )
            for made in ("again", "written", "theirs"):
                shutil.rmtree(folder / made, ignore_errors=True)
        print(json.dumps({"size_gb": round(size / 1e9, 2), **results}, indent=1))


def _run(script: str, *arguments: object) -> tuple[int, float]:
    """Peak of resident memory in bytes, and seconds, of a process that runs a script."""
    line = [sys.executable, "-c", f"import sys; from pathlib import Path\n{script}", *map(str, arguments)]
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            output.seek(0)
            sys.exit(f"expected a job that ends well, got: {output.read().decode()}")
    return usage.ru_maxrss * 1024, time.monotonic() - start


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    if folder.exists():
        sys.exit(f"expected nothing at --folder {folder}, got something; choose a new one")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
