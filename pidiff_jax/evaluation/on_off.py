"""The pair that everything here comes in: with the identity on, and with it off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax

T = TypeVar("T")
U = TypeVar("U")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnOff(Generic[T]):
    """The same thing with the identity on and off."""

    on: T
    off: T

    def map(self, function: Callable[[T], U]) -> "OnOff[U]":
        """What the function makes of both."""
        return OnOff(function(self.on), function(self.off))

    def by_name(self) -> dict[str, T]:
        """Both, as {"on", "off"}."""
        return {"on": self.on, "off": self.off}
