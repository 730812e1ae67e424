"""Shared by the commands: config flags with helpful errors, and one-line errors instead of tracebacks."""

import difflib
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags

# A user's mistakes, and what their machine refuses; anything else is our defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)
_INTERRUPTED = 130  # the shell's status for a program ended by Ctrl-C


def define_config() -> flags.FlagHolder:
    """Defines --config=FILE.py[:PART] and, for every key of it, --config.KEY=VALUE."""
    return config_flags.DEFINE_config_file("config", None, "Experiment file, for example experiments/quickstart.py.")


def run(main: Callable[[], None], *, after_interrupt: str) -> None:
    """Parses flags and runs `main`; a user's mistake ends in one line on stderr and exit status 1 (2 for a bad flag).

    `after_interrupt` says how to go on after Ctrl-C. With the environment variable PIDIFF_TRACEBACK set, a mistake keeps
    its traceback.
    """
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it says at every start that PyTorch isn't there
    app.run(lambda _: _guarded(main, after_interrupt), flags_parser=_parse)


def _guarded(main: Callable[[], None], after_interrupt: str) -> None:
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get("PIDIFF_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted; {after_interrupt}", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _parse(argv: Sequence[str]) -> list[str]:
    chosen = _config_argument(argv)
    if chosen is not None and not os.path.isfile(path := chosen.partition(":")[0]):
        print(f"error: expected a config file at {path}, found none; see experiments/", file=sys.stderr)
        sys.exit(2)
    unset = _unset_keys(argv)
    try:
        rest = flags.FLAGS([argument for argument in argv if _override(argument) not in unset.values()])
        for key in unset:
            flags.FLAGS["config"].value.update_from_flattened_dict({key: None})
    except SystemExit:
        raise
    except Exception as error:  # config_flags lets errors of many kinds through, also those of the config file itself
        print(f"error: {explain_flag_error(error, argv)}", file=sys.stderr)
        sys.exit(2)
    if len(rest) > 1:
        print(f"error: expected flags only, got {' '.join(rest[1:])!r}; write --name=value", file=sys.stderr)
        sys.exit(2)
    return rest


def explain_flag_error(error: Exception, argv: Sequence[str]) -> str:
    """One line for what absl or config_flags raised; for an unknown config key, with the nearest valid one."""
    config = _load_config(argv)
    if config is not None:
        valid = dict(config_items(config))
        for key, value in filter(None, map(_override, argv[1:])):
            if key not in valid and key.split("[")[0] not in valid:
                near = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.0)
                return f"unknown config key {key!r}; did you mean {near[0]!r}? (--config.{near[0]}=...)"
            if isinstance(valid.get(key), ConfigDict):
                inner = ", ".join(f"--config.{key}.{name}" for name in valid[key])
                return f"expected a value of one key, got {value!r} for all of --config.{key}; set {inner}"
            if f"{key}={value}" in str(error):
                return f"expected a value like {valid[key]!r} for --config.{key}, got {value!r}; correct it"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # config_flags puts the whole traceback of a config file into its message; the last line says what was wrong.
    return re.sub(r"^\w+: ", "", lines[-1]) if "Traceback" in str(error) else " ".join(" ".join(lines).split())


def config_items(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of every key, inner ones included, and their values."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from config_items(value, f"{prefix}{name}.")


def _override(argument: str) -> tuple[str, str] | None:
    """Key and value of --config.KEY=VALUE; None for other arguments. Without "=VALUE" the value is empty."""
    match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", argument)
    return None if match is None else (match[1], match[2] or "")


def _unset_keys(argv: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Keys that the command line sets to None, which config_flags can't, where the config allows that.

    It does where the value is a `placeholder` or a `FieldReference`.
    """
    config = _load_config(argv)
    unset = {}
    for key, value in filter(None, map(_override, argv[1:])):
        *outer, name = key.split(".")
        if value == "None" and config is not None:
            inner = dict(config_items(config)).get(".".join(outer)) if outer else config
            references = dict(inner.items(preserve_field_references=True)) if isinstance(inner, ConfigDict) else {}
            if isinstance(references.get(name), FieldReference):
                unset[key] = (key, value)
    return unset


def _config_argument(argv: Sequence[str]) -> str | None:
    """What --config= or --config names, or None."""
    chosen = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config=(.*)", argument):
            chosen = match[1]
        elif re.fullmatch(r"--?config", argument):
            chosen = following
    return chosen


def _load_config(argv: Sequence[str]) -> ConfigDict | None:
    """The config of the command line without its overrides, or None where it can't be loaded."""
    chosen = _config_argument(argv)
    if chosen is None:
        return None
    path, _, part = chosen.partition(":")
    try:
        return runpy.run_path(path)["get_config"](*([part] if part else []))
    except Exception:  # whatever a config file does; its own error is reported elsewhere
        return None
