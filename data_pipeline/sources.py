"""Random-access sources of records: `len(source)` and `source[index]`, a dict of numpy arrays without batch axis."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np


@runtime_checkable
class Source(Protocol):
    """What a loader reads."""

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """One record."""


class ArraySource:
    """Records held in memory as one array a field, with the records along the first axis."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"expected arrays of one length, got {lengths or 'none'}; give as many records in every field"
            )
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index.__index__()]) for name, array in self.arrays.items()}


class RecordSource:
    """Chosen fields of records on disk; `open_records` in data_pipeline/records.py makes it.

    reader: random access to the stored records, safe to read from several threads.
    metadata: what the writer noted about the data set.
    """

    def __init__(self, reader: Any, fields: Mapping[str, np.dtype], metadata: Mapping[str, Any]):
        self._reader, self._fields, self.metadata = reader, dict(fields), dict(metadata)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        position = index.__index__()
        if not -len(self) <= position < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {position}")
        stored = self._reader[position % len(self)]
        return {name: np.asarray(stored[name], dtype) for name, dtype in self._fields.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def note(self, index: int, name: str) -> str:
        """What the writer noted about a record for people, such as its "picture"; "" where nothing is known."""
        stored = self._reader[index].get(name, b"")
        return stored.decode("utf-8") if isinstance(stored, bytes) else str(stored)
