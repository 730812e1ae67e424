"""The config of an experiment: its file is run once, and the command line's values replace the file's."""

import ast
import difflib
import inspect
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict, FieldReference

from pidiff_jax.locations import local_path

_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")


def load_config(chosen: str) -> ConfigDict:
    """The config that FILE.py or FILE.py:PART makes: `get_config()` or `get_config(PART)`, locked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file can't be run, or makes no config; a ValueError of its own is passed on as it is.
    """
    path, _, part = str(local_path(chosen, "--config")).partition(":")
    if not path.endswith(".py"):
        raise ValueError(f"expected --config=FILE.py or FILE.py:PART, got {chosen!r}; see experiments/")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"expected a config file at {path}, found none; see experiments/")
    sys.path.append(os.path.dirname(os.path.abspath(path)))  # modules beside it, after all others
    try:
        get_config = runpy.run_path(path).get("get_config")
        if part and callable(get_config) and not inspect.signature(get_config).parameters:
            raise ValueError(
                f"expected {path} without a part, as its get_config takes none, got {part!r}; leave it out"
            )
        config = get_config(*([part] if part else [])) if callable(get_config) else None
    except ValueError:
        raise
    except (Exception, SystemExit) as error:  # a config file is code: anything can go wrong in it
        raise ValueError(
            f"expected a config from {chosen}, got {type(error).__name__}: {error}; correct the file "
            "(PIDIFF_TRACEBACK=1 shows where)"
        ) from error
    finally:
        sys.path.pop()
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"expected a function get_config() that returns a ConfigDict in {path}, got "
            f"{'none' if get_config is None else type(config).__name__}; see experiments/"
        )
    return config.lock()


def override(config: ConfigDict, key: str, text: str | None) -> None:
    """Sets the key to what the text says, in the type of the value that it has.

    text: None is a key without "=VALUE". "None" unsets a key whose value is a `placeholder` or a `FieldReference`.

    Raises:
        ValueError: no such key, the key of a group, or a text that isn't of the type; says what to write instead.
    """
    valid = dict(config_items(config))
    if key not in valid:
        settable = [name for name, value in valid.items() if not isinstance(value, ConfigDict)]
        near = difflib.get_close_matches(key, settable, n=1, cutoff=0.0)
        raise ValueError(f"unknown config key {key!r}; did you mean {near[0]!r}? (--config.{near[0]}=...)")
    current = valid[key]
    if isinstance(current, ConfigDict):
        inner = ", ".join(f"--config.{key}.{name}" for name in current)
        raise ValueError(f"expected a value of one key, got {text!r} for all of --config.{key}; set {inner}")
    if text is None:
        raise ValueError(f"expected --config.{key}=VALUE, got no '='; write --config.{key}={current}")
    outer, _, name = key.rpartition(".")
    group = valid[outer] if outer else config
    reference = dict(group.items(preserve_field_references=True))[name]
    optional = isinstance(reference, FieldReference)
    kind = group.get_type(name)
    if optional and (text == "None" or (kind is not str and text.lower() == "none")):
        group[name] = None
        return
    try:
        group[name] = _parser(kind)(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        example = f"a value like {current!r}" if current is not None else f"a value of type {kind.__name__}"
        example += ", or None," if optional else ""
        remedy = "write true or false" if kind is bool else "correct it"
        raise ValueError(f"expected {example} for --config.{key}, got {text!r}; {remedy}") from error


def config_items(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of every key, inner ones included, and their values."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from config_items(value, f"{prefix}{name}.")


def _parser(kind: type) -> Callable[[str], Any]:
    """The function that makes a value of this type from a text; it raises ValueError or SyntaxError where it can't."""
    if kind in (int, float, str):
        return kind
    if kind is bool:
        return _parse_bool
    if kind in (tuple, list):
        return lambda text: kind(_parse_items(text))
    return ast.literal_eval


def _parse_bool(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"expected true or false, got {text!r}; correct it")
    return text.lower() in _TRUE


def _parse_items(text: str) -> tuple | list:
    """The items of "(1, 2)", "[1, 2]" or "1, 2"; a single value is a sequence of one."""
    value = ast.literal_eval(text)
    return value if isinstance(value, tuple | list) else (value,)
