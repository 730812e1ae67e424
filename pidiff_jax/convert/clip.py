"""`ClipText` parameters from and to the state dict of transformers' `CLIPTextModel`."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flax import linen as nn

from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.convert.table import Entry, derive_table, ours_lazily, to_foreign
from pidiff_jax.models.clip import ClipText, ClipTextSpec
from pidiff_jax.models.shapes import text_encoder_shapes
from pidiff_jax.paths import unflatten

_PREFIX = "text_model."
# A constant 0, 1, 2, ... that older files carry.
_IGNORED = (r"text_model\.embeddings\.position_ids",)


@lru_cache(maxsize=8)
def clip_table(spec: ClipTextSpec) -> tuple[Entry, ...]:
    """The table between our text encoder and published files (whose names start with "text_model.")."""
    return tuple(derive_table(nn.meta.unbox(text_encoder_shapes(ClipText(spec))), renames=[("^", _PREFIX)]))


def clip_from_transformers(spec: ClipTextSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters from transformers' tensors; dtypes are kept.

    Names may lack "text_model.", as in files that transformers 5 writes.

    Raises:
        ValueError: names every missing, unknown and misshapen tensor.
    """
    return unflatten(dict(clip_lazily(spec, LazyTensors.of(tensors))))


def clip_lazily(spec: ClipTextSpec, tensors: LazyTensors) -> LazyTensors:
    """`clip_from_transformers`, by path and one by one."""
    names = {name: name if name.startswith(_PREFIX) else _PREFIX + name for name in tensors}
    return ours_lazily(clip_table(spec), tensors.renamed(names), _IGNORED)


def clip_to_transformers(spec: ClipTextSpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Transformers' tensors, with the names of published files; the inverse of `clip_from_transformers`."""
    return to_foreign(clip_table(spec), params)
