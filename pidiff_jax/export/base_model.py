"""`diffusers`: the run's base model as a folder that `StableDiffusionPipeline.from_pretrained` opens; no identity."""

from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.diffusers_writer import write_diffusers_folder
from pidiff_jax.export.format import Export, Scenes
from pidiff_jax.export.model_spec import fill_in_hash
from pidiff_jax.export.torch_pipeline import draw_pictures, open_pipeline
from pidiff_jax.sampling.components import Components


class BaseModelFormat:
    """Holds every run's base, with what was trained of it; see `format.Format`."""

    name = "diffusers"
    draws_identity, needs_base, has_variants, has_people = False, False, True, False
    usage = 'StableDiffusionPipeline.from_pretrained("{folder}")'

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Nothing can't be held."""

    def write(self, export: Export, folder: Path) -> None:
        """The complete folder."""
        write_base_model(export, folder, export.dtype, export.variant)

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """UNet, text encoder and VAE, without an identity branch."""
        return open_diffusers_folder(folder).load(dtype=None)

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray:
        """By diffusers' own pipeline."""
        return draw_pictures(open_pipeline(folder, export.variant), scenes)


def write_base_model(export: Export, folder: Path, dtype: np.dtype | type, variant: str | None = None) -> None:
    """Writes the model without its identity branch into an empty folder, or a new one."""
    components, unet = export.components, export.components.unet.spec
    if folder.is_dir():
        folder.rmdir()
    write_diffusers_folder(
        folder,
        export.run.params,
        unet_spec=unet,
        vae_spec=components.vae.spec,
        text_spec=components.conditioner.text_encoder.spec,
        tokenizer=components.tokenizer,
        schedule=export.schedule,
        latent_size=components.latent_size,
        dtype=dtype,
        variant=variant,
        metadata=export.metadata("", "diffusers", "The base model of an identity adapter, without its identity."),
    )
    for path in folder.rglob("*.safetensors"):
        fill_in_hash(path)
