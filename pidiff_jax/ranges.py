"""Numbers of a config and of callers: checked by their range, with the name before the complaint."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

MAX_COUNT = 2**31 - 1  # steps and sizes are int32 on devices
MAX_SEED = 2**32 - 1


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Puts what is being checked, such as a config's key, before an error's text."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        # Not the error's own kind, which may need more than a text, as that of JSON does.
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{name}: {error}") from error


def check_count(name: str, value: Any, least: int = 1, most: int = MAX_COUNT) -> None:
    """Raises ValueError unless `value` is a whole number in [least, most]."""
    _check_whole(name, value)
    if value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value}; correct it")
    if value > most:
        raise ValueError(f"expected {name} of at most {most}, got {value}; correct it")


def check_number(
    name: str,
    value: Any,
    *,
    above: float | int | None = None,
    least: float | int | None = None,
    below: float | int | None = None,
    most: float | int | None = None,
    none_means: str | None = None,
) -> None:
    """Raises ValueError unless `value` is a finite number in the range.

    above, below: the range ends before these. least, most: it ends with these.
    none_means: what None is for; without it, None is refused.
    """
    if value is None and none_means is not None:
        return
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if not fits or (below is not None and not value < below) or (most is not None and not value <= most):
        words = _words(above, least, below, most) + ("" if none_means is None else f", or None for {none_means}")
        raise ValueError(f"expected {name} {words}, got {value!r}; correct it")


def _words(
    above: float | int | None, least: float | int | None, below: float | int | None, most: float | int | None
) -> str:
    low = above if above is not None else least
    high = below if below is not None else most
    if low is None and high is None:
        return "to be a finite number"
    if high is None:
        return f"above {low}" if above is not None else f"of at least {low}"
    return f"in {'(' if above is not None else '['}{low}, {high}{')' if below is not None else ']'}"


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected {name} to be a whole number, got {value!r}; correct it")
