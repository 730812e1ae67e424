"""Strict partial initialisation: which parameters come from a source, and which are allowed to stay fresh."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pidiff_jax.paths import flatten, listing, unflatten


def initialise_from(
    tree: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    allow_missing: str | None = None,
    allow_unused: str | None = None,
) -> dict[str, Any]:
    """Returns `tree` with the values of `source`, in the dtypes of `tree`.

    Args:
        tree: fresh parameters; leaves that `source` must provide may be `jax.ShapeDtypeStruct`s.
        source: parameters with the same paths.
        allow_missing: regex searched in the "/"-joined path; what matches keeps its fresh value if `source` lacks it.
        allow_unused: regex of paths that `source` may have although `tree` has not.

    Raises:
        ValueError: names the missing, unknown and misshapen parameters.
    """
    fresh = flatten(tree)
    given = flatten(source)
    problems, out = [], {}
    for path, leaf in fresh.items():
        if path in given:
            if given[path].shape != leaf.shape:
                problems.append(f"{path}: expected shape {tuple(leaf.shape)}, got {tuple(given[path].shape)}")
            out[path] = given[path].astype(leaf.dtype, copy=False)
        elif not _matches(allow_missing, path):
            problems.append(f"{path}: missing in the source")
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            problems.append(f"{path}: missing in the source, and there is no fresh value to keep")
        else:
            out[path] = leaf
    problems += [
        f"{path}: of shape {tuple(np.shape(leaf))} in the source only"
        for path, leaf in given.items()
        if path not in fresh and not _matches(allow_unused, path)
    ]
    if problems:
        raise ValueError(
            f"expected a source that fits the parameters, got {len(problems)} differences: {listing(problems)}; "
            "correct the source or the spec"
        )
    return unflatten(out)


def _matches(pattern: str | None, path: str) -> bool:
    return pattern is not None and re.search(pattern, path) is not None
