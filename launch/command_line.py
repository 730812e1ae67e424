"""Shared by the commands: config flags with helpful errors, and one-line errors instead of tracebacks."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

# A user's mistakes; anything else is our defect and keeps its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, FloatingPointError)


def define_config() -> flags.FlagHolder:
    """Defines --config=FILE.py[:PART] and, for every key of it, --config.KEY=VALUE."""
    return config_flags.DEFINE_config_file("config", None, "Experiment file, for example experiments/quickstart.py.")


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; a user's mistake ends in one line on stderr and exit status 1 (2 for a bad flag)."""
    logging.set_verbosity(logging.ERROR)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get("PIDIFF_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
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
        valid = list(config_keys(config))
        for argument in argv[1:]:
            match = re.match(r"--?config\.([^=]+)", argument)
            if match and match[1] not in valid and match[1].split("[")[0] not in valid:
                near = difflib.get_close_matches(match[1], valid, n=1, cutoff=0.0)
                return f"unknown config key {match[1]!r}; did you mean {near[0]!r}? (--config.{near[0]}=...)"
    return " ".join(str(error).split()) or type(error).__name__


def config_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of every key, inner ones included."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from config_keys(value, f"{prefix}{name}.")


def _load_config(argv: Sequence[str]) -> Any:
    """The config of --config=... alone, or None where that can't be loaded either."""
    chosen = [a for a in argv if re.match(r"--?config=", a)]
    if not chosen:
        return None
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    try:
        values([argv[0], chosen[-1]])
        return values.config
    except Exception:
        return None
