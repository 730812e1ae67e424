"""Where files lie, as users write it: the one door for every path of a flag, a config key and the Python API."""

import os
import re
import tempfile
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # Path("gs://x") has lost a slash


def local_path(text: str | os.PathLike[str], what: str) -> Path:
    """The path that a user means: "~" and "~name" are homes, file:///x is /x.

    Args:
        text: as it was written; a relative path stays relative to the working directory.
        what: the flag, config key or argument, for errors.

    Example:
        >>> local_path("~/runs/anna", "--workdir")
        PosixPath('/home/anna/runs/anna')

    Raises:
        ValueError: empty, the home of somebody unknown, or a place of another scheme, such as gs://: all parts of a run (its
            lease, its history, records and weight files) must be on one file system, which few libraries can be elsewhere.
    """
    written = os.fspath(text)
    if not written:
        raise ValueError(f"expected a path for {what}, got nothing; name one")
    # A Path has lost a slash: whether a host was named, it can't tell.
    if isinstance(text, str) and (local := re.match(r"file:(//(localhost)?)?(?=/(?!/))", written)):
        written = written[local.end() :]
    if scheme := _SCHEME.match(written):
        raise ValueError(
            f"expected a path on this machine for {what}, got {written!r}; mount what lies at {scheme[1]}:// as a folder "
            "(gcsfuse, s3fs, NFS), or copy it here"
        )
    expanded = os.path.expanduser(written)  # Path's own takes "./~" for a home too
    if written.startswith("~") and expanded == written:
        raise ValueError(f"expected a path for {what}, got {written!r}, nobody's home here; write the whole path")
    return Path(expanded)


def make_folder(path: Path, what: str) -> None:
    """Makes a folder, and looks whether files can be written there.

    what: it is, for the error: "a folder to write to at --output=x".

    Raises:
        ValueError: it can't be made, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"expected {what}, got: {error.strerror}; choose another") from error


def optional_path(text: str | os.PathLike[str] | None, what: str) -> Path | None:
    """`local_path` where None and the empty text stand for no path."""
    return local_path(text, what) if text else None
