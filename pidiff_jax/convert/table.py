"""Two-way tables between foreign (PyTorch) state dicts and our parameter trees; strict in both directions.

Our parameter paths mirror the PyTorch names, so a table is derived from our own tree and a short list of renames instead
of being written by hand: a tensor that neither side knows can't slip through.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pidiff_jax.convert.lazy_tensors import LazyTensors
from pidiff_jax.paths import flatten, unflatten


@dataclass(frozen=True)
class Layout:
    """A reversible change of memory layout between a foreign tensor and our array."""

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_foreign: Callable[[np.ndarray], np.ndarray]


SAME = Layout("same", lambda x: x, lambda x: x)
DENSE = Layout("dense", lambda x: x.T, lambda x: x.T)
CONV = Layout("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))

# Leaf name of ours -> leaf name of PyTorch modules.
LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclass(frozen=True)
class Entry:
    """One tensor on both sides. `ours` is a "/"-joined path; `shape` is our array's shape."""

    foreign: str
    ours: str
    layout: Layout
    shape: tuple[int, ...]


def derive_table(
    expected_shapes: Mapping[str, Any],
    renames: Sequence[tuple[str, str]] = (),
    layouts: Mapping[str, Layout] | None = None,
) -> list[Entry]:
    """Builds the table for a tree of arrays or `jax.ShapeDtypeStruct`s (for example from `jax.eval_shape` of an init).

    The foreign name of `a_0/b/kernel` is `a.0.b.weight`; then each (regex, replacement) of `renames` is applied to it in
    order with `re.sub`. `layouts` overrides the layout for paths of ours that match a regex.

    Raises:
        ValueError: two paths get the same foreign name, or a leaf has no known foreign name or layout.
    """
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for path, leaf in flatten(expected_shapes).items():
        shape = tuple(leaf.shape)
        foreign = _foreign_name(path, renames)
        if foreign in seen:
            raise ValueError(
                f"expected one foreign name per parameter, got {foreign!r} for {seen[foreign]!r} and {path!r}"
            )
        seen[foreign] = path
        entries.append(Entry(foreign, path, _layout(path, len(shape), layouts or {}), shape))
    return entries


def _foreign_name(path: str, renames: Sequence[tuple[str, str]]) -> str:
    *modules, leaf = path.split("/")
    modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    name = ".".join([*modules, LEAF_NAMES.get(leaf, leaf)])
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _layout(path: str, ndim: int, layouts: Mapping[str, Layout]) -> Layout:
    for pattern, layout in layouts.items():
        if re.search(pattern, path):
            return layout
    if path.rsplit("/", 1)[-1] != "kernel":
        return SAME
    if ndim not in (2, 4):
        raise ValueError(f"expected a kernel of 2 or 4 dimensions at {path!r}, got {ndim}; give its layout explicitly")
    return DENSE if ndim == 2 else CONV


def to_ours(table: Sequence[Entry], foreign: Mapping[str, np.ndarray], ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Converts a foreign state dict to our nested tree, keeping dtypes; see `ours_lazily`."""
    return unflatten(dict(ours_lazily(table, foreign, ignore)))


def to_foreign(table: Sequence[Entry], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts our nested tree to a foreign state dict; the inverse of `to_ours`, as strict."""
    return dict(foreign_lazily(table, flatten(tree)))


def ours_lazily(table: Sequence[Entry], foreign: Mapping[str, Any], ignore: Sequence[str] = ()) -> LazyTensors:
    """Our arrays by path, each converted when it is asked for; the names and shapes are all checked at once.

    Args:
        table: entries for every parameter of ours.
        foreign: name -> tensor. Every name must be in the table or match a regex of `ignore`.
        ignore: regexes of names that carry no weights (position ids, counters).

    Raises:
        ValueError: names every missing, unknown and misshapen tensor.
    """
    source = LazyTensors.of(foreign)
    by_name = {entry.foreign: entry for entry in table}
    problems = [f"missing {name!r}" for name in by_name if name not in source]
    found: dict[str, Entry] = {}
    for name, struct in source.structs.items():
        entry = by_name.get(name)
        if entry is None:
            if not any(re.fullmatch(pattern, name) for pattern in ignore):
                problems.append(f"unknown {name!r} of shape {tuple(struct.shape)}")
        elif tuple(struct.shape) != (expected := _foreign_shape(entry)):
            problems.append(f"{name!r}: expected shape {expected}, got {tuple(struct.shape)}")
        else:
            found[entry.ours] = entry
    if problems:
        raise ValueError(_summary("the weights don't fit this model", problems))

    def read(path: str) -> np.ndarray:
        return np.asarray(found[path].layout.to_ours(source.read(found[path].foreign)), order="C")

    return LazyTensors({path: _struct(entry.shape, source, entry.foreign) for path, entry in found.items()}, read)


def foreign_lazily(table: Sequence[Entry], ours: Mapping[str, Any]) -> LazyTensors:
    """Foreign tensors by name from our arrays by path; the inverse of `ours_lazily`, as strict."""
    source = LazyTensors.of(ours)
    by_path = {entry.ours: entry for entry in table}
    problems = [f"missing {path!r}" for path in by_path if path not in source]
    problems += [f"unknown {path!r}" for path in source if path not in by_path]
    problems += [
        f"{path!r}: expected shape {by_path[path].shape}, got {tuple(struct.shape)}"
        for path, struct in source.structs.items()
        if path in by_path and tuple(struct.shape) != by_path[path].shape
    ]
    if problems:
        raise ValueError(_summary("the parameters don't fit this table", problems))
    found = {entry.foreign: entry for entry in table}

    def read(name: str) -> np.ndarray:
        return np.asarray(found[name].layout.to_foreign(source.read(found[name].ours)), order="C")

    return LazyTensors({name: _struct(_foreign_shape(e), source, e.ours) for name, e in found.items()}, read)


def _struct(shape: tuple[int, ...], source: LazyTensors, name: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, source.structs[name].dtype)


def _foreign_shape(entry: Entry) -> tuple[int, ...]:
    # A zero-stride stand-in: the layout is applied to a shape, no memory is touched.
    return entry.layout.to_foreign(np.broadcast_to(np.zeros((), np.int8), entry.shape)).shape


def _summary(what: str, problems: Sequence[str], limit: int = 12) -> str:
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return f"{what}: " + "; ".join(problems[:limit]) + more + "; check that the file and the spec name the same model"
