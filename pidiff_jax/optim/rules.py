"""Ordered path rules decide which group every parameter belongs to, and so what is trained and what is frozen."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pidiff_jax.paths import Tree, flatten, listing, unflatten

FROZEN = "frozen"


@dataclass(frozen=True)
class ParameterRule:
    """Parameters whose "/"-joined path contains a match of the regex `pattern` belong to `group`.

    The group "frozen" is special: its parameters are not differentiated, have no optimizer state and aren't saved.
    """

    pattern: str
    group: str


def assign_groups(rules: Sequence[ParameterRule], tree: Tree) -> dict[str, Any]:
    """Gives every leaf of `tree` the group of the first rule that matches its path; the result mirrors `tree`.

    Leaves may be arrays or `jax.ShapeDtypeStruct`s: only paths are read.

    Raises:
        ValueError: a pattern is no regex, a parameter matches no rule, or a rule is the first match of no parameter.
    """
    compiled = [(compile_pattern(rule.pattern), rule) for rule in rules]
    groups: dict[str, str] = {}
    wins: Counter[ParameterRule] = Counter()
    uncovered = []
    for path in flatten(tree):
        rule = next((rule for pattern, rule in compiled if pattern.search(path)), None)
        if rule is None:
            uncovered.append(path)
            continue
        wins[rule] += 1
        groups[path] = rule.group
    if uncovered:
        raise ValueError(
            f"expected a rule for every parameter, got none for {listing(uncovered)}; add a rule, or end the list with "
            f"ParameterRule('.*', {FROZEN!r})"
        )
    unused = [repr(rule.pattern) for rule in rules if not wins[rule]]
    if unused:
        raise ValueError(
            f"expected every rule to be the first match of a parameter, got no such parameter for {listing(unused)}; "
            "correct the pattern, move it before the rules that match the same paths, or remove it"
        )
    return unflatten(groups)


def split(tree: Tree, groups: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits `tree` into (trainable, frozen), two nested dicts without a path in common; the leaves are not copied.

    Works for any tree with the paths of `groups`: parameters, shape structs, shardings.

    Raises:
        ValueError: `tree` and `groups` don't have the same paths.
    """
    leaves, names = flatten(tree), flatten(groups)
    different = sorted(leaves.keys() ^ names.keys())
    if different:
        raise ValueError(f"expected a tree with the paths of its groups, got differences at {listing(different)}")
    frozen = {path: leaf for path, leaf in leaves.items() if names[path] == FROZEN}
    trainable = {path: leaf for path, leaf in leaves.items() if names[path] != FROZEN}
    return unflatten(trainable), unflatten(frozen)


def merge(trainable: Tree, frozen: Tree) -> dict[str, Any]:
    """Puts two trees without a path in common together again; the inverse of `split`.

    Raises:
        ValueError: a path is in both trees.
    """
    left, right = flatten(trainable), flatten(frozen)
    common = sorted(left.keys() & right.keys())
    if common:
        raise ValueError(f"expected trees without a path in common, got both with {listing(common)}")
    return unflatten({**left, **right})


def describe_parameters(groups: Tree, tree: Tree, num_examples: int = 2) -> str:
    """Returns a text table with one line per group: arrays, parameters, and some example paths; frozen comes last."""
    leaves, names = flatten(tree), flatten(groups)
    rows = [("group", "arrays", "parameters", "for example")]
    for group in sorted(set(names.values()), key=lambda name: (name == FROZEN, name)):
        paths = [path for path, name in names.items() if name == group]
        count = sum(int(np.prod(leaves[path].shape)) for path in paths)
        shown = ", ".join(paths[:num_examples]) + (", ..." if len(paths) > num_examples else "")
        rows.append((group, f"{len(paths):,}", f"{count:,}", shown))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    lines.insert(1, "  ".join("-" * width for width in (*widths, len(rows[0][3]))))
    return "\n".join(lines)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Raises ValueError where it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {pattern!r}: {error}; correct the rule") from error
