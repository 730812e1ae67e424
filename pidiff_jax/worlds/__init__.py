"""Where base model, data, people to draw and judges come from; `open_world` opens the one that a config names."""

from typing import Any

from pidiff_jax.worlds.world import World

__all__ = ["World", "open_world"]

NAMES = ("photographs", "portraits")


def open_world(config: Any) -> World:
    """The world of `config.world`; reads nothing yet, and imports no other world.

    Raises:
        ValueError: the config names none, or one that doesn't exist.
    """
    name = config.get("world")
    if name == "portraits":
        from pidiff_jax.worlds.portraits.world import PortraitsWorld

        return PortraitsWorld(config)
    if name == "photographs":
        from pidiff_jax.worlds.photographs.world import PhotographsWorld

        return PhotographsWorld(config)
    raise ValueError(
        f"expected config.world of {NAMES}, got {name!r}; correct it (a config of an earlier version has none)"
    )
