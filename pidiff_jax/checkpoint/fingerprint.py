"""Content hashes of parameter trees: frozen weights are not saved with a run, only recognised again."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pidiff_jax.paths import flatten


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hexadecimal, over path, shape, dtype and bytes of every leaf, in the order of the paths.

    Leaves are arrays that this process holds whole. The dtype counts: take the fingerprint of the weights as they were
    read, before they are converted to the compute dtype.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf)
        total.update(f"{path}\0{array.shape}\0{array.dtype}\0".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
