"""Where base model, data, people to draw and judges come from; `open_world` opens the one that a config names."""

from typing import Any

from pidiff_jax.worlds.world import Faces, KnownCodes, World

__all__ = ["Faces", "KnownCodes", "World", "open_world"]

NAMES = ("photographs", "portraits")
# Keys of a config that hold keys; a world or a task has some of them.
SECTIONS = (
    "base", "data", "dropout", "evaluation", "groups", "identity", "init", "losses", "mapper", "mesh", "sampling"
)  # fmt: skip


def open_world(config: Any) -> World:
    """The world of `config.world`; reads nothing yet, and imports no other world.

    Raises:
        ValueError: the config names none, one that doesn't exist, or another version of it; or it has a value where keys
            belong.
    """
    for name in SECTIONS:
        if not hasattr(section := config.get(name, {}), "items"):
            raise ValueError(f"expected config.{name} with keys of its own, got {section!r}; correct it")
    try:
        return _of_this_version(_open(config, config.get("world")), config)
    except AttributeError as error:  # of a key that the world reads
        raise ValueError(
            f"expected a config for the world {config.world!r}, got one without a key: {error}; use an experiment "
            "of that world"
        ) from error


def _of_this_version(world: World, config: Any) -> World:
    version = config.get("world_version", 1)  # configs of the first versions have no such key
    if version != world.version:
        raise ValueError(
            f"expected config.world_version={world.version}, as a config or run {world.title} has here, got {version!r}, whose "
            "pictures, codes and weights were others; train again, or open it with the pidiff_jax that made it"
        )
    return world


def _open(config: Any, name: str | None) -> World:
    if name == "portraits":
        from pidiff_jax.worlds.portraits.world import PortraitsWorld

        return PortraitsWorld(config)
    if name == "photographs":
        from pidiff_jax.worlds.photographs.world import PhotographsWorld

        return PhotographsWorld(config)
    raise ValueError(
        f"expected config.world of {NAMES}, got {name!r}; correct it (a config of an earlier version has none)"
    )
