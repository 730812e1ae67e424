"""`ip_adapter`: a file that stock diffusers loads by `load_ip_adapter`, people for it, and a script that draws them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.adapter import from_ip_adapter, to_ip_adapter
from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.convert.image_projection import image_embeds
from pidiff_jax.export.format import Export, Scenes, check_adapter_alone
from pidiff_jax.export.model_spec import fill_in_hash
from pidiff_jax.export.torch_pipeline import draw_pictures, open_pipeline, quiet
from pidiff_jax.sampling.components import Components

WEIGHTS, PEOPLE, SCRIPT = "ip_adapter.safetensors", "people.safetensors", "draw.py"

_SCRIPT = '''"""Draws a person: python draw.py BASE "a prompt" [PERSON]

BASE is a Stable Diffusion folder of diffusers, the adapter's own base; the people are {people}.
"""
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

here = Path(__file__).parent
people = load_file(here / "{people_file}")
if len(sys.argv) == 3:
    sys.argv.append("{first}")
if len(sys.argv) != 4 or sys.argv[3] not in people:
    sys.exit(__doc__)
base, prompt, name = sys.argv[1:]
if not Path(base, "model_index.json").is_file():
    sys.exit(f"no Stable Diffusion folder at {{base}}; of an embedded base, launch.export --format=diffusers makes one")

num_steps, scale = {num_steps}, {scale}
guidance_scale = {guidance_scale}
first_step = round({start} * num_steps)  # without the identity until then


def appear(pipe, step, timestep, tensors):
    if step + 1 == first_step:
        pipe.set_ip_adapter_scale(scale)
    return tensors


person = people[name] if guidance_scale > 1 else people[name][1:]  # "no identity" is first, which guidance leads away from
pipe = StableDiffusionPipeline.from_pretrained(base)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.load_ip_adapter(here, subfolder="", weight_name="{weights}", image_encoder_folder=None, low_cpu_mem_usage=False)
pipe.set_ip_adapter_scale(0.0 if first_step else scale)
picture = pipe(
    prompt, ip_adapter_image_embeds=[person], num_inference_steps=num_steps, guidance_scale=guidance_scale,
    callback_on_step_end=appear, generator=torch.Generator().manual_seed(0),
).images[0]
picture.save(f"{{name}}.png")
print(f"wrote {{name}}.png")
'''


class IPAdapterFormat:
    """Holds adapters that share the text's query; see `format.Format`."""

    name = "ip_adapter"
    draws_identity, needs_base, has_variants, has_people = True, True, False, True
    usage = 'python {folder}/draw.py BASE "a prompt"'

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Whether the attention is decoupled, the adapter all that was trained, and a sink's token zero."""
        check_adapter_alone(self.name, trained)
        check_decoupled(self.name, components, trained)

    def write(self, export: Export, folder: Path) -> None:
        """Weights, people and the script."""
        write_ip_adapter(export, folder / WEIGHTS)
        components, sampling = export.components, export.config["sampling"]
        people = {name: embeds(components, code) for name, code in export.people().items()}
        write_safetensors(folder / PEOPLE, people)
        script = _SCRIPT.format(
            people=", ".join(people), first=next(iter(people)), people_file=PEOPLE, weights=WEIGHTS,
            scale=sampling["identity_scale"], num_steps=sampling["num_steps"],
            guidance_scale=sampling["guidance_scale"], start=sampling["identity_start"],
        )  # fmt: skip
        (folder / SCRIPT).write_text(script, encoding="utf-8")

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Identity branch and mapper."""
        return read_ip_adapter(export, folder / WEIGHTS)

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray:
        """By diffusers' pipeline and its own method."""
        return draw_with_ip_adapter(export, folder / WEIGHTS, base, scenes)


def write_ip_adapter(export: Export, path: Path) -> None:
    """Writes the weights."""
    components = export.components
    tensors = to_ip_adapter(export.run.params, components.unet.spec, components.identity_mapper.spec)
    metadata = export.metadata("ip-adapter", "diffusers", "IP-Adapter on W+ codes of StyleGAN instead of CLIP images.")
    write_safetensors(path, export.cast(tensors), metadata)
    fill_in_hash(path)


def read_ip_adapter(export: Export, path: Path) -> dict[str, Any]:
    """Identity branch and mapper, in the file's dtype."""
    components = export.components
    return from_ip_adapter(read_tensors(path), components.unet.spec, components.identity_mapper.spec)


def embeds(components: Components, code: np.ndarray) -> np.ndarray:
    """One of diffusers' `ip_adapter_image_embeds`, for guidance: that of no identity, and that of the code."""
    identity = components.unet.spec.identity
    assert identity is not None
    codes = np.stack([np.zeros_like(code), code])
    return image_embeds(codes, components.identity_mapper.spec, identity.sink)


def draw_with_ip_adapter(export: Export, path: Path, base: Path, scenes: Scenes) -> np.ndarray:
    """Draws with a file of weights."""
    import torch

    pipeline = open_pipeline(base)
    with quiet():
        pipeline.load_ip_adapter(
            path.parent, subfolder="", weight_name=path.name, image_encoder_folder=None, low_cpu_mem_usage=False
        )
    first_step = round(scenes.identity_start * scenes.num_steps)

    def appear(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == first_step:
            pipeline.set_ip_adapter_scale(scenes.identity_scale)
        return tensors

    def inputs(code: np.ndarray, guided: bool) -> Mapping[str, Any]:
        pipeline.set_ip_adapter_scale(0.0 if first_step else scenes.identity_scale)
        both = torch.from_numpy(embeds(export.components, code))
        return {"ip_adapter_image_embeds": [both if guided else both[1:]], "callback_on_step_end": appear}

    return draw_pictures(pipeline, scenes, inputs)


def check_decoupled(name: str, components: Components, trained: frozenset[str]) -> None:
    """Raises ValueError for an adapter that an IP-Adapter file can't hold."""
    identity = components.unet.spec.identity
    assert identity is not None
    if identity.variant != "decoupled":
        others = "wplus_adapter or diffusers_identity" if identity.variant == "residual" else "diffusers_identity"
        raise ValueError(
            f"expected a run with config.identity.variant 'decoupled' for --format={name}, got {identity.variant!r}, whose "
            f"own query an IP-Adapter can't hold; --format={others} can"
        )
    if identity.sink and "mapper/norm/bias" in trained:
        raise ValueError(
            f"expected a run whose mapper/norm/bias is frozen, since it has a sink, for --format={name}, got one that "
            "trained it, so that no token of an IP-Adapter can be zero; --format=diffusers_identity can hold it"
        )
