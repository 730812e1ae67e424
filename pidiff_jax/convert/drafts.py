"""Files and folders that appear whole or not at all, and never in the place of another."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def check_free(path: Path) -> None:
    """Raises FileExistsError if something is at `path`, be it a link to nothing."""
    if os.path.lexists(path):
        raise FileExistsError(
            f"expected nothing at {path}, got a file or folder; choose another name or remove it first"
        )


@contextlib.contextmanager
def draft_of(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A place beside `path` for a file or folder that becomes `path` at the end, unless an error comes before.

    Missing folders on the way are made; after an error they are gone again, as the draft is.

    replace: an older file at `path` gives way to the new one at the end; until then it stays.

    Raises:
        FileExistsError: something is at `path`, or is there meanwhile; it is left as it is.
        ValueError: its folder can't be written to.
        OSError: the disk is full.
    """
    if not replace:
        check_free(path)
    made = [folder for folder in path.parents if not os.path.lexists(folder)]  # the deepest first
    try:
        with _place(path) as draft:
            yield draft
            if replace:
                os.replace(draft, path)
            else:
                _move(draft, path)
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise OSError(
                f"expected room for {path}, got: {error.strerror}; make room, or choose another place"
            ) from error
        raise


@contextlib.contextmanager
def _place(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        raise ValueError(
            f"expected a folder that can be written to at {path.parent}, got: {error.strerror}; choose another place for "
            f"{path.name}"
        ) from None
    with folder as name:
        yield Path(name) / path.name


def _move(draft: Path, path: Path) -> None:
    try:
        if draft.is_dir():
            os.rename(draft, path)
            return
        try:
            os.link(draft, path)  # unlike a rename, fails if another process has made the file meanwhile
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.rename(draft, path)
    except OSError:
        check_free(path)
        raise
