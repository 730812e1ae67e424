"""`comfyui`: an IP-Adapter file, people as `.ipadpt` files, and a workflow that draws one of them.

The nodes are those of ComfyUI_IPAdapter_plus: "IPAdapter Load Embeds" reads a tensor from ComfyUI's input folder, and
"IPAdapter Embeds" hands it to the image projection as it is. Without a negative one it would ask for a CLIP vision model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.export.format import Export, Scenes, check_adapter_alone
from pidiff_jax.export.ip_adapter import (
    check_decoupled,
    draw_with_ip_adapter,
    embeds,
    read_ip_adapter,
    write_ip_adapter,
)
from pidiff_jax.export.model_spec import OTHER_SIZE, architecture
from pidiff_jax.export.torch_pipeline import check_torch, save_torch
from pidiff_jax.sampling.components import Components

# A name with "plusv2" or "unnorm" would be read as another kind.
WEIGHTS, NEGATIVE, WORKFLOW = "pidiff_ip_adapter.safetensors", "negative.ipadpt", "workflow_api.json"


class ComfyUIFormat:
    """Holds what an IP-Adapter holds, on a base that ComfyUI knows; see `format.Format`."""

    name = "comfyui"
    draws_identity, needs_base, has_variants, has_people = True, True, False, True
    usage = f"load {{folder}}/{WORKFLOW} in ComfyUI, with the other files in its folders"

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """As an IP-Adapter's; and the base must have Stable Diffusion's sizes."""
        check_adapter_alone(self.name, trained)
        check_decoupled(self.name, components, trained)
        if architecture(components) == OTHER_SIZE:
            raise ValueError(
                f"expected a base of Stable Diffusion 1.x's or 2.x's sizes for --format={self.name}, got another, which "
                "ComfyUI can't open; --format=ip_adapter can hold the run"
            )
        check_torch(self.name)

    def write(self, export: Export, folder: Path) -> None:
        """Weights, people and the workflow."""
        people = export.people()
        if (taken := Path(NEGATIVE).stem) in people:
            raise ValueError(
                f"expected no person named {taken!r} as --identity for --format={self.name}, which has a file of that name; "
                "rename the file of codes"
            )
        write_ip_adapter(export, folder / WEIGHTS)
        for name, code in people.items():
            negative, positive = embeds(export.components, code)  # (1, F), or rows (1, t, F)
            save_torch(folder / f"{name}.ipadpt", positive)
        save_torch(folder / NEGATIVE, negative)
        workflow = json.dumps(_workflow(export), indent=2) + "\n"
        (folder / WORKFLOW).write_text(workflow, encoding="utf-8")

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Identity branch and mapper."""
        return read_ip_adapter(export, folder / WEIGHTS)

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray:
        """By diffusers, which reads the same file; ComfyUI itself isn't started."""
        return draw_with_ip_adapter(export, folder / WEIGHTS, base, scenes)


def _workflow(export: Export) -> dict[str, Any]:
    """In ComfyUI's API form: number -> node; [number, output] is a connection."""
    sampling, components = export.config["sampling"], export.components
    height, width = (side * components.vae.spec.downsampling for side in components.latent_size)
    person = next(iter(export.people()))

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="the adapter's base model.safetensors"),
        "2": node("IPAdapterModelLoader", ipadapter_file=WEIGHTS),
        "3": node("IPAdapterLoadEmbeds", embeds=f"{person}.ipadpt"),
        "4": node("IPAdapterLoadEmbeds", embeds=NEGATIVE),
        "5": node(
            "IPAdapterEmbeds", model=["1", 0], ipadapter=["2", 0], pos_embed=["3", 0], neg_embed=["4", 0],
            weight=sampling["identity_scale"], weight_type="linear", start_at=sampling["identity_start"],
            end_at=1.0, embeds_scaling="V only",
        ),
        "6": node("CLIPTextEncode", clip=["1", 1], text="a photo of a person in a park"),
        "7": node("CLIPTextEncode", clip=["1", 1], text=""),
        "8": node("EmptyLatentImage", width=width, height=height, batch_size=1),
        "9": node(
            "KSampler", model=["5", 0], positive=["6", 0], negative=["7", 0], latent_image=["8", 0], seed=0,
            steps=sampling["num_steps"], cfg=sampling["guidance_scale"], sampler_name="ddim",
            scheduler="ddim_uniform", denoise=1.0,
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="pidiff"),
    }  # fmt: skip
