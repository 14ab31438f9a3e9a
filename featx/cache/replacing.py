"""Replace a file only while it is the one that was read: no lock is held while working."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["FileVersion", "Replaced"]

# A lock is held for a comparison and a rename; who holds one for longer was stopped in the middle,
# or is a program that only looks at the file.
_PATIENCE_S = 5.0
_PAUSE_S = 0.002


class Replaced(Exception):  # noqa: N818
    """The file is not the one that was read any more: read it again."""


class FileVersion:
    """A file that is only ever replaced whole, as it is now; its absence is a version, too.

    Open it before the file is read and replace it by `move`. While the version is open its inode
    cannot become another file's, so that the inode tells whether it was replaced. The lock
    around the comparison and the rename is one of the version itself: nothing is left behind, and
    the system takes it back when a process ends. Where the file system has no locks, what
    remains is the comparison just before the rename.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._identity = _identity(path, self._descriptor)

    def __enter__(self) -> FileVersion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the version; its inode may become another file's."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def move(self, new: Path, target: Path) -> None:
        """Move a finished file into the place of this version.

        Raises
        ------
        Replaced
            If another file took its place, or it was removed.
        """
        if self._identity is None:
            _move_if_free(new, target)
            return
        with self.held():
            new.replace(target)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else replace or remove this version.

        Raises
        ------
        Replaced
            If that has happened.
        """
        if self._descriptor is not None:
            _lock(self._descriptor)
        try:
            if _current_identity(self.path) != self._identity:
                raise Replaced(self.path)
            yield
        finally:
            if self._descriptor is not None:
                _unlock(self._descriptor)


def _open(path: Path) -> int | None:
    # Network file systems lock only what is open for writing.
    for flags in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, flags)
    return None


def _identity(path: Path, descriptor: int | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if descriptor is None else os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _current_identity(path: Path) -> tuple[int, int] | None:
    # Opening makes a network file system ask its server what the name stands for now.
    descriptor = _open(path)
    try:
        return _identity(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _move_if_free(new: Path, target: Path) -> None:
    try:
        target.hardlink_to(new)
    except FileExistsError as error:
        raise Replaced(target) from error
    except OSError:  # a file system without hard links
        if target.exists():
            raise Replaced(target) from None
        new.rename(target)
    else:
        new.unlink()


def _lock(descriptor: int) -> None:
    """Wait for the lock of an open file; go on without where there is none to be had."""
    try:
        import fcntl
    except ImportError:
        return
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:
            return
        else:
            return


def _unlock(descriptor: int) -> None:
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
