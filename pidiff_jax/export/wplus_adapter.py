"""`wplus_adapter`: a file in w-plus-adapter's layout, `wplus_adapter.bin`, for the residual variant."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pidiff_jax.convert.adapter import from_wplus_adapter, to_wplus_adapter
from pidiff_jax.convert.files import read_tensors
from pidiff_jax.export.format import Export, Scenes, check_adapter_alone
from pidiff_jax.export.identity_pipeline import draw_with_identity_pipeline, open_identity_pipeline
from pidiff_jax.export.torch_pipeline import check_torch, save_torch
from pidiff_jax.sampling.components import Components

FILE = "wplus_adapter.bin"


class WPlusAdapterFormat:
    """Holds adapters of w-plus-adapter's form; see `format.Format`."""

    name = "wplus_adapter"
    draws_identity, needs_base, has_variants, has_people = True, False, False, False
    usage = "w-plus-adapter's own code loads {folder}/wplus_adapter.bin"

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Whether attention and mapper have w-plus-adapter's form, and torch is there to write the file."""
        check_adapter_alone(self.name, trained)
        identity, mapper = components.unet.spec.identity, components.identity_mapper.spec
        assert identity is not None
        found = {
            "config.identity.variant": identity.variant,
            "config.identity.sink": identity.sink,
            "config.mapper.kind": mapper.kind,
            "config.mapper.tokens_per_group": mapper.tokens_per_group,
        }
        expected = ("residual", False, "linear", 1)
        if wrong := [name for name, wanted in zip(found, expected, strict=True) if found[name] != wanted]:
            other = "ip_adapter or diffusers_identity" if identity.variant == "decoupled" else "diffusers_identity"
            raise ValueError(
                f"expected a run with {', '.join(f'{n}={w!r}' for n, w in zip(found, expected, strict=True))} for "
                f"--format={self.name}, got {', '.join(f'{name}={found[name]!r}' for name in wrong)}; --format={other} can "
                "hold it"
            )
        check_torch(self.name)

    def write(self, export: Export, folder: Path) -> None:
        """One file."""
        components = export.components
        tensors = to_wplus_adapter(export.run.params, components.unet.spec, components.identity_mapper.spec)
        content: dict[str, dict[str, np.ndarray]] = {}
        for name, tensor in export.cast(tensors).items():
            part, rest = name.split(".", 1)
            content.setdefault(part, {})[rest] = tensor
        save_torch(folder / FILE, content)

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Identity branch and mapper."""
        components = export.components
        return from_wplus_adapter(read_tensors(folder / FILE), components.unet.spec, components.identity_mapper.spec)

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> np.ndarray:
        """By the pipeline of `diffusers_identity`, with the file's weights, numbered as diffusers numbers its processors."""
        import torch

        pipeline = open_identity_pipeline(replace(export, dtype=np.dtype(np.float32), variant=None), base)
        weights: Mapping[str, Any] = torch.load(folder / FILE, weights_only=True)
        mapper = {name.replace("proj_", "proj."): tensor for name, tensor in weights["w_proj"].items()}
        pipeline.mapper.load_state_dict(mapper)
        for number, processor in enumerate(pipeline.unet.attn_processors.values()):
            if hasattr(processor, "to_k_id"):
                names = {f"{name}_id.weight": f"{number}.{name}_wplus.weight" for name in ("to_q", "to_k", "to_v")}
                processor.load_state_dict({ours: weights["wplus_adapter"][name] for ours, name in names.items()})
        return draw_with_identity_pipeline(pipeline, scenes)
