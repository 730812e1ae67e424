"""Trees of parameters by path: the leaves of nested dictionaries by "/"-joined names, which are an interface here."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of nested dicts by "/"-joined path."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Tree) -> dict[str, Any]:
    """Returns the nested dicts of which `flatten` gave the leaves."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any pytree by "/"-joined path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def listing(names: Sequence[str], limit: int = 8) -> str:
    """Joins names for an error message, leaving out what goes beyond `limit`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
