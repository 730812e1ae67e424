"""A config that notes which of its keys are read."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict


class RecordedConfig:
    """Reads like the ConfigDict that it wraps. `unread` lists the dotted keys that nobody has asked for."""

    def __init__(self, config: ConfigDict, read: set[str] | None = None, prefix: str = ""):
        self._config, self._read, self._prefix = config, set() if read is None else read, prefix

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, name: str) -> Any:
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return RecordedConfig(value, self._read, f"{self._prefix}{name}.")
        self._read.add(self._prefix + name)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def keys(self) -> list[str]:
        return list(self._config.keys())

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._config else default

    def to_dict(self) -> dict[str, Any]:
        return {name: value.to_dict() if isinstance(value, RecordedConfig) else value for name, value in self.items()}

    def to_json_best_effort(self) -> str:
        return self._config.to_json_best_effort()

    def unread(self) -> list[str]:
        return sorted(set(_leaves(self._config)) - self._read)


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name
