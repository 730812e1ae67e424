"""`safetensors`: the adapter in our own form, one file that can be opened in place of the run's folder."""

from pathlib import Path
from typing import Any

from pidiff_jax.export.format import Export, Scenes, of_adapter, parts
from pidiff_jax.export.model_spec import fill_in_hash
from pidiff_jax.paths import flatten, unflatten
from pidiff_jax.runs.adapter_file import read_adapter, write_adapter
from pidiff_jax.sampling.components import Components

FILE = "adapter.safetensors"


class AdapterFormat:
    """Holds every run; see `format.Format`."""

    name = "safetensors"
    draws_identity, needs_base, has_variants, has_people = True, False, False, False
    usage = 'open_run("{folder}/adapter.safetensors"), --workdir={folder}/adapter.safetensors'

    def check(self, components: Components, trained: frozenset[str]) -> None:
        """Nothing can't be held."""

    def write(self, export: Export, folder: Path) -> None:
        """What was trained and the rest of the adapter, by our paths, so that another training can start from it."""
        run = export.run
        held = run.trained | {path for path in flatten(run.params) if of_adapter(path)}
        tensors = export.cast(flatten(parts(run.params, held)))
        metadata = export.metadata("pidiff-adapter", "pidiff_jax", "Identity adapter on W+ codes.")
        write_adapter(folder / FILE, unflatten(tensors), config=export.config, facts=run.facts, metadata=metadata)
        fill_in_hash(folder / FILE)

    def read(self, export: Export, folder: Path) -> dict[str, Any]:
        """Everything that was written."""
        return read_adapter(folder / FILE)[0]

    def draw_in_torch(self, export: Export, folder: Path, base: Path, scenes: Scenes) -> None:
        """PyTorch has no reader of it."""
