"""JSON of files that people edit."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """What a text of JSON says. A key that stands twice is a mistake here: JSON itself takes the last in silence.

    Raises:
        ValueError: it is no JSON (`json.JSONDecodeError`), or an object has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return content
