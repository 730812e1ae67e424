"""ModelSpec 1.0.1: what a safetensors file says about itself in the metadata of its header.

Source: github.com/Stability-AI/ModelSpec.
"""

import base64
import datetime
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from pidiff_jax.arrays import byte_pixels
from pidiff_jax.models.unet import UNetSpec
from pidiff_jax.sampling.components import Components

_PREFIX = "modelspec."
_HASH = f"{_PREFIX}hash_sha256"
_NO_HASH = "0x" + "0" * 64
# Of a base that is none of Stable Diffusion's; a name of ours.
OTHER_SIZE = "stable-diffusion-unet"
_THUMBNAIL_PX = 256
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v", "x0": "sample"}


def describe(
    components: Components,
    *,
    kind: str,
    implementation: str,
    title: str,
    description: str,
    licence: str | None = None,
    picture: Float[np.ndarray, "h w 3"] | None = None,
) -> dict[str, str]:
    """The metadata of a file; its hash is filled in once the file is there (`fill_in_hash`).

    Args:
        components: the model that the file is for, or of.
        kind: what the file is beside the base: "ip-adapter", say; "" for the base itself.
        implementation: whose code reads it.
        licence: that of the weights, in the user's words; None leaves it out.
        picture: in [0, 1], for the thumbnail.
    """
    height, width = (side * components.vae.spec.downsampling for side in components.latent_size)
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, [architecture(components), kind])),
        "implementation": implementation,
        "title": title,
        "resolution": f"{width}x{height}",
        "description": description,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hash_sha256": _NO_HASH,
        "prediction_type": _PREDICTION_TYPES[components.prediction_type],
    }
    if licence is not None:
        fields["license"] = licence
    if picture is not None:
        fields["thumbnail"] = _thumbnail(picture)
    return {_PREFIX + name: value for name, value in fields.items()}


def architecture(components: Components) -> str:
    """ModelSpec's name of a base model; `OTHER_SIZE` where it has none."""
    spec = replace(components.unet.spec, identity=None)
    if spec == UNetSpec.sd15():
        return "stable-diffusion-v1"
    if spec == UNetSpec.sd21():
        return "stable-diffusion-v2-768-v" if components.prediction_type == "v" else "stable-diffusion-v2-512"
    return OTHER_SIZE


def fill_in_hash(path: Path) -> None:
    """Puts the SHA-256 of the tensors' bytes into the header of a file whose metadata `describe` made."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        total = hashlib.sha256()
        while block := file.read(1 << 22):
            total.update(block)
        found = header.replace(_NO_HASH.encode(), f"0x{total.hexdigest()}".encode())
        file.seek(8)
        file.write(found)  # as long as before


def _thumbnail(picture: Float[np.ndarray, "h w 3"]) -> str:
    image = Image.fromarray(byte_pixels(picture))
    image = image.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
