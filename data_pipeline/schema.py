"""The schema: the fields of a training record, wherever it comes from; a batch has them with a leading axis b."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RecordField:
    """One field of a record; `axes` are the symbols of its axes, without the leading batch axis `b`.

    bounds: lowest and highest value that may be there.
    peak: some value must be as high.
    """

    name: str
    axes: tuple[str, ...]
    dtype: type[np.generic]
    meaning: str
    bounds: tuple[float, float] = (-np.inf, np.inf)
    peak: float = -np.inf


FIELDS = (
    RecordField("latent_mean", ("h", "w", "c"), np.float32, "mean of the VAE's posterior of the picture, unscaled"),
    RecordField("latent_log_variance", ("h", "w", "c"), np.float32, "log-variance of the same posterior"),
    RecordField("wplus", ("l", "d"), np.float32, "W+ code of the person, the average code included"),
    RecordField(
        "text_ids", ("m",), np.int32, "token ids of the caption, padded to the text encoder's length", (0.0, np.inf)
    ),
    RecordField(
        "face_mask", ("h", "w"), np.float32, "share of each latent position that is face", (0.0, 1.0), peak=0.5
    ),
    RecordField("person_id", (), np.int32, "number of the person; pictures of one person share it"),
)


@dataclass(frozen=True)
class RecordSpec:
    """Sizes of the records of one data set: latent height, width and channels, W+ layers and width, text length."""

    h: int
    w: int
    c: int
    l: int  # noqa: E741 (the symbol of W+ layers everywhere in this code)
    d: int
    m: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "RecordSpec":
        """The sizes of one record (without batch axis), which it thereby checks."""
        return cls(**_check(record, {}))

    def shape(self, field: RecordField) -> tuple[int, ...]:
        """Shape of a field of one record."""
        return tuple(getattr(self, axis) for axis in field.axes)

    def without_latent_size(self) -> dict[str, int]:
        """The sizes that a model fixes: a UNet draws latents of any height and width."""
        return {axis: size for axis, size in asdict(self).items() if axis not in ("h", "w")}


def validate_record(record: Mapping[str, Any], expected: RecordSpec | Mapping[str, int] | None = None) -> None:
    """Checks names, dtypes, shapes and value ranges of a record of numpy arrays.

    expected: sizes that the model needs, as a RecordSpec or for some of the symbols h, w, c, l, d, m; None checks only
    that the fields agree with each other.

    Raises:
        ValueError: names the first field that differs, what was expected and what it is.
    """
    _check(record, asdict(expected) if isinstance(expected, RecordSpec) else (expected or {}))


def _check(arrays: Mapping[str, Any], expected: Mapping[str, int]) -> dict[str, int]:
    names = [field.name for field in FIELDS]
    if differences := [f"missing {n!r}" for n in names if n not in arrays] + [
        f"unknown {n!r}" for n in arrays if n not in names
    ]:
        raise ValueError(
            f"expected the fields {', '.join(names)}, got {', '.join(differences)}; prepare the records again"
        )
    sizes, origin = dict(expected), dict.fromkeys(expected, "the specification")
    for field in FIELDS:
        array, axes = np.asarray(arrays[field.name]), field.axes
        if array.dtype != field.dtype:
            raise _mismatch(field, f"dtype {np.dtype(field.dtype).name}", array.dtype.name)
        if array.ndim != len(axes):
            raise _mismatch(field, f"axes ({' '.join(axes)})", f"shape {array.shape}")
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise _mismatch(field, f"{axis}={sizes[axis]} as in {origin[axis]}", f"{axis}={size}")
            origin.setdefault(axis, field.name)
        _check_values(field, array)
    return sizes


def _check_values(field: RecordField, array: np.ndarray) -> None:
    if not array.size:
        return
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _mismatch(field, "finite values", "NaN or infinity")
    if low < field.bounds[0] or high > field.bounds[1]:
        raise _mismatch(field, f"values in [{field.bounds[0]:g}, {field.bounds[1]:g}]", f"[{low:g}, {high:g}]")
    if high < field.peak:
        raise _mismatch(field, f"a value of at least {field.peak:g}", f"{high:g} at most")


def _mismatch(field: RecordField, expected: str, got: str) -> ValueError:
    return ValueError(f"{field.name}: expected {expected}, got {got} ({field.meaning}); prepare the records again")
