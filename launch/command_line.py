"""How every command starts: one parse of its flags, JAX's set-up, and one-line errors instead of tracebacks."""

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from absl import app, flags, logging
from ml_collections import ConfigDict

from launch.experiment_file import load_config, override
from pidiff_jax.locations import local_path
from pidiff_jax.train.termination import Terminated, raise_when_told_to_end

# A user's mistakes, and what their machine refuses; anything else is our defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)
_OF_THE_MACHINE = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE")  # of XLA: memory, or other processes
_ENDED_BY = 128  # plus a signal's number: the shell's status for a program that a signal ended
_BAD_FLAG = 2
_show_with_place = warnings.showwarning

flags.disclaim_key_flags()  # --help of a command shows what this module defines as the command's own
flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder where compiled programs are kept for the next start, or 'off'. By default what PIDIFF_COMPILATION_CACHE says, "
    "else JAX_COMPILATION_CACHE_DIR, else ~/.cache/pidiff_jax/compiled.",
)


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path on this machine"

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str | Path) -> Path:
        return local_path(argument, f"--{self.name}")

    def flag_type(self) -> str:
        return "path"


def define_path(name: str, help: str, *, required: bool = False) -> flags.FlagHolder:
    """Defines the flag of a file or folder; see `local_path`."""
    return flags.DEFINE(_PathParser(name), name, None, help, required=required)


class ConfigFlag:
    """--config=FILE.py[:PART], with --config.KEY=VALUE for every key of the config that the file makes."""

    def __init__(self):
        self._config: ConfigDict | None = None
        self._file = flags.DEFINE_string(
            "config",
            None,
            "FILE.py[:PART], the experiment, for example experiments/quickstart.py. --config.KEY=VALUE changes a key of it, "
            "for example --config.batch_size=16 or --config.mesh.fsdp=8.",
            required=True,
        )

    @property
    def value(self) -> ConfigDict:
        """The config, with the values of the command line; there once the flags are parsed."""
        assert self._config is not None, "the flags are not parsed yet"
        return self._config

    def load(self, overrides: Sequence[tuple[str, str | None]]) -> None:
        """Runs the file and puts the values in.

        Raises:
            ValueError, FileNotFoundError: see `load_config` and `override`.
        """
        config = load_config(self._file.value)
        for key, text in overrides:
            override(config, key, text)
        self._config = config


def define_config() -> ConfigFlag:
    """Defines --config and --config.KEY=VALUE; give the result to `start`."""
    return ConfigFlag()


def start(main: Callable[[], None], *, after_interrupt: str, config: ConfigFlag | None = None) -> None:
    """Parses the flags, sets up JAX, and runs `main`.

    A user's mistake ends in one line on stderr and exit status 1, or 2 if the command line is wrong. With the environment
    variable PIDIFF_TRACEBACK set, it keeps its traceback.

    after_interrupt: how to go on after Ctrl-C, or after a signal that ended the command.
    config: of the commands that have one.
    """
    flags.declare_key_flag("compilation_cache")
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A letter that a terminal lacks is no reason to lose the work.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it says at every start that PyTorch isn't there
    app.run(lambda _: _guarded(main, after_interrupt), flags_parser=lambda argv: _parse(argv, config))


def _guarded(main: Callable[[], None], after_interrupt: str) -> None:
    raise_when_told_to_end()
    try:
        _set_up_jax()
        main()
    except USER_ERRORS as error:
        _stop(error, status=1)
    except RuntimeError as error:  # XLA has no finer kinds
        if not any(word in str(error) for word in _OF_THE_MACHINE):
            raise
        _stop(error, status=1)
    except KeyboardInterrupt:
        _say_ended("interrupted", after_interrupt, signal.SIGINT)
    except Terminated as ended:
        _say_ended(f"ended by {ended}", after_interrupt, ended.number)


def _say_ended(how: str, then: str, number: int) -> None:
    print(f"{how}; {then}", file=sys.stderr)
    sys.exit(_ENDED_BY + number)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In one line, without the place in our code, which says nothing to a user."""
    if category is UserWarning:
        print(f"warning: {message}", file=file or sys.stderr)
    else:
        _show_with_place(message, category, filename, lineno, file, line)


def _set_up_jax() -> None:
    """Here and not at the top: --help and wrong flags need no JAX, which takes seconds to import.

    Raises:
        ValueError: the environment asks for devices that are not here, or for other processes wrongly.
    """
    import jax

    from launch.processes import join_processes
    from pidiff_jax.compilation_cache import use_compilation_cache

    use_compilation_cache(flags.FLAGS.compilation_cache)
    join_processes()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a CPU-only JAX is asked for CUDA
        chosen = os.environ.get("JAX_PLATFORMS")
        asked = f"the devices of JAX_PLATFORMS={chosen}" if chosen else "a device that works"
        raise ValueError(
            f"expected {asked}, got: {str(error) or 'none of them'}; install the JAX for it, or set "
            "JAX_PLATFORMS=cpu to go on without"
        ) from error


def _parse(argv: Sequence[str], config: ConfigFlag | None) -> list[str]:
    """Gives absl what is its own, and the config the rest."""
    try:
        argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
        overrides = [] if config is None else [pair for pair in map(_override, argv[1:]) if pair]
        if config is not None:
            _check_config_flag(argv[1:])
        flags.FLAGS.set_gnu_getopt(True)  # flags may come after a stray argument, which is refused below
        rest = _absl_parse([argument for argument in argv if config is None or _override(argument) is None])
        if config is not None:
            config.load(overrides)
        if len(rest) > 1:
            raise ValueError(f"expected flags only, got {' '.join(rest[1:])!r}; write --name=value")
    except (flags.Error, *USER_ERRORS) as error:
        _stop(error, status=_BAD_FLAG)
    except KeyboardInterrupt:
        _say_ended("interrupted", "nothing was begun", signal.SIGINT)
    return rest


def _check_config_flag(arguments: Sequence[str]) -> None:
    """Refuses --config twice, whose last would win in silence, and without a file, where it takes the next flag for one."""
    given = [i for i, argument in enumerate(arguments) if re.fullmatch(r"--?config(=.*)?", argument, re.DOTALL)]
    if len(given) > 1:
        raise ValueError(f"expected --config once, got it {len(given)} times; leave one")
    for index in given:
        following = arguments[index + 1] if index + 1 < len(arguments) else "-"
        if arguments[index].endswith("config=") or ("=" not in arguments[index] and following.startswith("-")):
            raise ValueError("expected --config=FILE.py or --config=FILE.py:PART, got no file; see experiments/")


def _absl_parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # the help was printed, which absl calls a failure
        sys.exit(0)
    except flags.IllegalFlagValueError as error:
        if missing := re.findall(r"Flag (--\w+) must have a value other than None", str(error)):
            raise ValueError(
                f"expected a value of {' and '.join(missing)}, got none; write {missing[0]}=VALUE (--help explains it)"
            ) from None
        raise


def _override(argument: str) -> tuple[str, str | None] | None:
    """Key and value of --config.KEY=VALUE; None for other arguments. Without "=VALUE" the value is None."""
    match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
    return None if match is None else (match[1], match[2])


def _stop(error: Exception, status: int) -> None:
    """Ends the command with the error's text, or, if the user asks for it, with its traceback."""
    if os.environ.get("PIDIFF_TRACEBACK"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)
