"""The pair that everything here comes in: with the identity on, and with it off."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class OnOff(NamedTuple, Generic[T]):
    """The same thing with the identity on and off."""

    on: T
    off: T

    def map(self, function: Callable[[T], U]) -> "OnOff[U]":
        """What the function makes of both."""
        return OnOff(function(self.on), function(self.off))
