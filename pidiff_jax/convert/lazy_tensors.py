"""Named tensors that are read or computed one by one: a model is converted without lying in memory as a whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class LazyTensors(Mapping[str, Any]):  # not np.ndarray: checks of types in tests would read one
    """A mapping whose values are made anew each time that they are asked for, and kept by nobody.

    structs: name -> shape and dtype, known without making a tensor.
    read: makes the tensor of a name.
    """

    structs: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.structs:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.structs)

    def __len__(self) -> int:
        return len(self.structs)

    @classmethod
    def of(cls, tensors: "Mapping[str, np.ndarray] | LazyTensors") -> "LazyTensors":
        """The same tensors; what is lazy already stays as it is."""
        if isinstance(tensors, LazyTensors):
            return tensors
        structs = {name: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for name, x in tensors.items()}
        return cls(structs, lambda name: np.asarray(tensors[name]))

    def renamed(self, names: Mapping[str, str]) -> "LazyTensors":
        """Those tensors whose names are the keys, under the names that are the values.

        Raises:
            ValueError: two would have one name.
        """
        old: dict[str, str] = {}
        for name, new in names.items():
            if new in old:
                raise ValueError(f"expected one tensor {new!r}, got it as {old[new]!r} and {name!r}; remove one")
            old[new] = name
        return LazyTensors({new: self.structs[name] for new, name in old.items()}, lambda new: self.read(old[new]))

    def only(self, names: Iterable[str]) -> "LazyTensors":
        """Those tensors alone."""
        return LazyTensors({name: self.structs[name] for name in names}, self.read)

    def extended(self, more: "LazyTensors") -> "LazyTensors":
        """These tensors and more; of two with one name, the other mapping's."""
        return LazyTensors({**self.structs, **more.structs}, lambda name: (more if name in more else self).read(name))

    def under(self, prefix: str) -> "LazyTensors":
        """Those whose names start with the prefix, without it."""
        return self.renamed({name: name[len(prefix) :] for name in self.structs if name.startswith(prefix)})

    def cast(self, dtype: np.dtype | type | None) -> "LazyTensors":
        """Floating-point tensors in another dtype; None keeps each as it is. What is too large for it is an error when read."""
        if dtype is None:
            return self
        structs = {
            name: jax.ShapeDtypeStruct(struct.shape, dtype) if is_float(struct.dtype) else struct
            for name, struct in self.structs.items()
        }
        return LazyTensors(structs, lambda name: in_dtype(self.read(name), structs[name].dtype, name))


def joined(parts: Mapping[str, LazyTensors]) -> LazyTensors:
    """All tensors of several mappings, as "part/name"."""
    structs = {f"{part}/{name}": struct for part, tensors in parts.items() for name, struct in tensors.structs.items()}

    def read(path: str) -> np.ndarray:
        part, name = path.split("/", 1)
        return parts[part].read(name)

    return LazyTensors(structs, read)


def in_dtype(tensor: np.ndarray, dtype: np.dtype | type, name: str) -> np.ndarray:
    """The tensor in another dtype; `name` is its name in errors.

    Raises:
        ValueError: a number is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype, copy=False)
    if cast.dtype.itemsize >= tensor.dtype.itemsize:
        return cast
    return finite(cast, f"{name!r} in {cast.dtype}", "take bfloat16 or float32")


def finite(tensor: np.ndarray, what: str, remedy: str) -> np.ndarray:
    """The tensor, if it holds neither NaN nor infinity.

    Raises:
        ValueError: it does; says in `what`, and the remedy.
    """
    if tensor.dtype.kind in "biu" or np.isfinite(tensor).all():
        return tensor
    raise ValueError(
        f"expected finite numbers in {what}, got {'NaN' if np.isnan(tensor).any() else 'infinity'}; {remedy}"
    )


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is of floating-point numbers, bfloat16 included."""
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16
