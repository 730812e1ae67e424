"""A real photograph with landmarks and head mask placed by hand: scikit-image's astronaut (NASA, public domain)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import skimage
from flax import linen as nn
from PIL import Image, ImageDraw

from data_pipeline.prepare import encode
from data_pipeline.prepare.networks import load_encoders
from data_pipeline.prepare.photographs import read_photographs
from pidiff_jax.convert.files import write_safetensors
from pidiff_jax.convert.ir_se import e4e_to_pytorch
from pidiff_jax.models.e4e import E4eEncoder, E4eSpec
from pidiff_jax.models.ir_se import IRSESpec

# Left eye, right eye, nose tip, left and right mouth corner, as seen in the picture; pixels (x, y).
LANDMARKS = np.array([(203.5, 100.5), (247.0, 103.5), (225.0, 127.0), (202.5, 139.5), (246.0, 140.0)])
CAPTION = "a photo of a person in an orange space suit in front of a flag"
_HEAD = [
    (174, 128), (160, 110), (156, 98), (154, 80), (153, 68), (158, 58), (172, 48), (188, 37), (194, 27), (205, 22),
    (222, 17), (245, 17), (262, 22), (278, 32), (288, 44), (296, 62), (302, 86), (298, 103), (290, 115), (280, 127),
    (270, 136), (267, 133), (263, 148), (256, 162), (247, 173), (235, 178), (222, 178), (208, 171), (196, 160),
    (188, 150), (183, 135), (181, 131),
]  # fmt: skip


def pixels() -> np.ndarray:
    """The photograph, uint8 (512, 512, 3)."""
    return np.array(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB"))


def head_mask() -> np.ndarray:
    """Head with hair, uint8 (512, 512): 255 inside, 0 outside."""
    mask = Image.new("L", (512, 512))
    ImageDraw.Draw(mask).polygon(_HEAD, fill=255)
    return np.array(mask)


def write_photographs(folder: Path) -> Path:
    """The photograph at six exposures, each as a person of its own, listed as docs/data.md says."""
    Image.fromarray(head_mask()).save(folder / "mask.png")
    lines = []
    for exposure in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        Image.fromarray((pixels() * exposure).astype(np.uint8)).save(folder / f"{exposure}.png")
        entry = {"file": f"{exposure}.png", "face_mask": "mask.png", "landmarks": LANDMARKS.tolist()}
        lines.append(json.dumps({**entry, "caption": CAPTION, "person": str(exposure)}))
    (folder / "photographs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_e4e(path: Path) -> E4eSpec:
    """A tiny e4e encoder of 18 x 512 codes with random weights; returns its sizes."""
    spec = E4eSpec(IRSESpec(units=(1, 1, 1, 1), widths=(16, 16, 16, 16)), input_size=64, style_width=16)
    fresh = E4eEncoder(spec).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    tensors = e4e_to_pytorch(spec, nn.meta.unbox(fresh))
    write_safetensors(path, {**tensors, "latent_avg": np.zeros((18, 512), np.float32)})
    return spec


def write_records(base: Path, photographs: Path, folder: Path, size_px: int) -> Path:
    """The folder of their records, by a base's VAE and tokenizer and `write_e4e`'s encoder."""
    encoders = load_encoders(base, folder / "e4e.safetensors", write_e4e(folder / "e4e.safetensors"))
    splits = encode.split_by_person(read_photographs(photographs), validation_fraction=1 / 3)
    encode.write_photographs(folder / "records", splits, encoders, size_px=size_px, face_size_px=64)
    return folder / "records"
