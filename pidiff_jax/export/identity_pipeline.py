"""`diffusers_identity`: the base's folder with the identity inside, and a pipeline in PyTorch that draws with it."""

import json
import shutil
import types
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from pidiff_jax.convert.diffusers_folder import open_diffusers_folder
from pidiff_jax.convert.files import read_tensors, write_safetensors
from pidiff_jax.convert.table import Entry, derive_table, to_foreign, to_ours
from pidiff_jax.convert.unet import split_identity
from pidiff_jax.export.base_model import write_base_model
from pidiff_jax.export.format import Export, Scenes
from pidiff_jax.export.model_spec import fill_in_hash
from pidiff_jax.export.torch_pipeline import draw_pictures, prepared
from pidiff_jax.models.identity_mapper import IdentityMapper, MapperSpec
from pidiff_jax.models.shapes import mapper_shapes, unet_shapes
from pidiff_jax.models.unet import UNet, UNetSpec
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.sampling.components import Components

PEOPLE = "people.safetensors"
_TEMPLATE = Path(__file__).parent / "torch_files" / "pipeline.py"
_WEIGHTS, _CONFIG = "identity/identity.safetensors", "identity/config.json"


class IdentityPipelineFormat:
    """Holds every run; see `format.Format`."""

    name = "diffusers_identity"
    draws_identity, needs_base, has_variants, has_people = True, False, True, True
    usage = 'DiffusionPipeline.from_pretrained("{folder}", custom_pipeline="{folder}", trust_remote_code=True)'

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Nothing can't be held."""

    def write(self, export: Export, folder: Path) -> None:
        """The base's folder, the pipeline, and mapper and identity branch with their settings."""
        write_base_model(export, folder, export.dtype, export.variant)
        shutil.copyfile(_TEMPLATE, folder / _TEMPLATE.name)
        write_safetensors(folder / PEOPLE, dict(export.people()))
        (folder / _CONFIG).parent.mkdir()
        (folder / _CONFIG).write_text(json.dumps(_settings(export), indent=2) + "\n", encoding="utf-8")
        params = {"unet": split_identity(export.run.params["unet"])[1], "mapper": export.run.params["mapper"]}
        metadata = export.metadata(
            "pidiff-adapter", "diffusers", "Identity adapter on W+ codes, for pipeline.py beside it."
        )
        write_safetensors(folder / _WEIGHTS, export.cast(to_foreign(_table(export), params)), metadata)
        fill_in_hash(folder / _WEIGHTS)

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Everything that draws."""
        base = open_diffusers_folder(folder).load(dtype=None)
        identity = to_ours(_table(export), read_tensors(folder / _WEIGHTS))
        return unflatten({**flatten(base), **flatten(identity)})

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray:
        """By the pipeline that was written."""
        return draw_with_identity_pipeline(prepared(_load_class(folder), folder, variant=export.variant), scenes)


def open_identity_pipeline(export: Export, folder: Path) -> Any:
    """Writes an export's folder and opens its pipeline, with the identity in place."""
    IdentityPipelineFormat().write(export, folder)
    pipeline = prepared(_load_class(folder), folder)
    pipeline.load_identity()
    return pipeline


def draw_with_identity_pipeline(pipeline: Any, scenes: Scenes) -> np.ndarray:
    """Draws the scenes; pixels (n, h, w, 3) in [0, 1]."""
    import torch

    def inputs(code: np.ndarray, guided: bool) -> Mapping[str, Any]:
        return {
            "wplus": torch.from_numpy(np.array(code)),
            "identity_scale": scenes.identity_scale,
            "identity_start": scenes.identity_start,
        }

    return draw_pictures(pipeline, scenes, inputs)


def _table(export: Export) -> tuple[Entry, ...]:
    components = export.components
    return _identity_table(components.unet.spec, components.identity_mapper.spec)


@lru_cache(maxsize=8)
def _identity_table(unet: UNetSpec, mapper: MapperSpec) -> tuple[Entry, ...]:
    identity = split_identity(nn.meta.unbox(unet_shapes(UNet(unet))))[1]
    return tuple(derive_table({"unet": identity, "mapper": nn.meta.unbox(mapper_shapes(IdentityMapper(mapper)))}))


def _settings(export: Export) -> dict[str, Any]:
    """The arguments of the pipeline's modules, and how the run draws."""
    identity, mapper = export.components.unet.spec.identity, export.components.identity_mapper.spec
    assert identity is not None
    sampling = export.config["sampling"]
    return {
        "mapper": {
            "groups": mapper.groups,
            "wplus_dim": mapper.wplus_dim,
            "token_dim": mapper.token_dim,
            "tokens_per_group": mapper.tokens_per_group,
            "hidden_width": mapper.hidden_width,
        },
        "attention": {"token_dim": identity.token_dim, "variant": identity.variant, "sink": identity.sink},
        "identity_scale": sampling["identity_scale"],
        "identity_start": sampling["identity_start"],
        "guidance_scale": sampling["guidance_scale"],
        "num_inference_steps": sampling["num_steps"],
    }


def _load_class(folder: Path) -> Any:
    """The pipeline's class: diffusers would keep a copy of the file among the user's own, an import its bytecode beside it."""
    module, path = types.ModuleType("pidiff_pipeline"), folder / _TEMPLATE.name
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), vars(module))
    return module.PIDiffPipeline
