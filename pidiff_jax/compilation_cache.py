"""Compiled programs kept on disk, so that the second start of a command need not compile them again."""

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import filelock
import jax

from pidiff_jax.locations import local_path

OFF = "off"
VARIABLE = "PIDIFF_COMPILATION_CACHE"
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30  # the programs not used for the longest time go first
# A start has a hundred programs of less, which together take about two seconds; JAX looks at all others whenever it writes one.
MIN_COMPILE_SECONDS = 0.1
_LOCK_SECONDS = 10.0  # JAX's own patience with another process that reads or writes


def use_compilation_cache(chosen: str | None) -> None:
    """Makes JAX keep what it compiles; call it before JAX compiles anything.

    A folder that can't be made, written to or locked gives a warning, one line on stderr, and no cache.

    chosen: a folder, "off", or None for what the environment says; see `cache_folder`.
    """
    folder: Path | str | None = chosen
    try:
        folder = cache_folder(chosen, os.environ)
        if folder == OFF:
            jax.config.update("jax_enable_compilation_cache", False)
        if not isinstance(folder, Path):
            return
        # Private, for whoever can write there can have the user run their code.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (OSError, NotImplementedError, RuntimeError) as error:  # without locks; without a home
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        print(
            f"warning: expected a folder for compiled programs at {folder or 'the home'}, got: {reason}; going on without "
            f"(--compilation_cache=FOLDER chooses another, --compilation_cache={OFF} none)",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A bound makes JAX lock the folder whenever it reads or writes, so that several processes can share it.
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def cache_folder(chosen: str | None, environment: Mapping[str, str]) -> Path | str | None:
    """Where compiled programs are kept; "off" for nowhere, None for where JAX's own settings say.

    The command line comes first, then PIDIFF_COMPILATION_CACHE, then JAX_COMPILATION_CACHE_DIR, then the user's folder of
    caches. Empty ones count as not set.
    """
    chosen = chosen or environment.get(VARIABLE)
    if chosen and chosen.lower() == OFF:
        return OFF
    if not chosen and environment.get(JAX_VARIABLE):
        return None
    caches = Path(environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = local_path(chosen, "--compilation_cache") if chosen else caches / "pidiff_jax" / "compiled"
    return folder.absolute() / _processor()


def _processor() -> str:
    """Eight letters for this kind of processor: programs for a CPU hold its machine code, and homes may be shared."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # of x86; of ARM
    described = sorted({line for line in lines if line.partition(":")[0].strip() in names})
    text = "\n".join([platform.machine(), *(described or [platform.processor()])])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a killed process has not written to their end; JAX would never write them again.

    JAX notes the time of use beside a program once that is written; without this note, its eviction fails too.
    """
    # A lock that nobody lets go, as a killed program leaves it on a file system without locks, would hold up each compilation.
    with filelock.FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").is_file():
                program.unlink()
