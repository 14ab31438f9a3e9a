"""Replace a file only while it is the one that was read: no lock is held while working."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featx.cache.layout import writing
from featx.exceptions import CacheWriteError

_LOG = logging.getLogger("featx")
# The lock is held for a comparison and a rename. A process that holds it for longer has a slow
# disk, or was stopped in the middle.
_PATIENCE_S = 30.0
_NOTICE_S = 5.0
_PAUSE_S = 0.002
# Errors of file systems that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_HOLDER = re.compile(rb"([0-9]{1,10}) ([\w.-]{1,64})\n", re.ASCII)


class Replaced(Exception):  # noqa: N818
    """The file was replaced since it was read: read it again."""


class FileVersion:
    """A file that is only ever replaced whole, as it is now; its absence is a version, too.

    Open it before the file is read and replace it by `move`. While the version is open its inode
    cannot become another file's, so that the inode tells whether it was replaced.
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
        """Let go of the version."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def move(self, new: Path, target: Path, *, still: Callable[[], bool] = lambda: True) -> None:
        """Move a finished file into the place of this version, else raise `Replaced`.

        `still` is asked under the lock, whether what the file says still holds.
        """
        with self.held():
            if not still():
                raise Replaced(target)
            new.replace(target)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else replace or remove this version; `Replaced` if somebody has."""
        with locked(self.path.parent):
            if _current_identity(self.path) != self._identity:
                raise Replaced(self.path)
            yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's files for a moment; `CacheWriteError` if it cannot be had.

    It is a lock of the system (``flock``) on the file ``.lock``, which a process that ends gives
    back. Where the file system has none, it is the file ``.lock-held``, made by whoever comes
    first and removed in the end; after a kill a person has to remove it.
    """
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, release = _take(path)
        # Names the holder to those that wait; what remains of it afterwards means nothing.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    try:
        yield
    finally:
        release()
        os.close(descriptor)


def _take(path: Path) -> tuple[int, Callable[[], None]]:
    """Wait for a lock; return its open file, and what gives the lock back."""
    start, told = time.monotonic(), False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY)  # another user's can be locked all the same
        try:
            release = _try_lock(path, descriptor)
            # Else the file was removed, and others lock another one under its name.
            if release and _current_identity(path) == _identity(path, descriptor):
                return descriptor, release
            if release:
                release()
            waited_s = time.monotonic() - start
            _check_patience(path, descriptor, waited_s)
            if waited_s > _NOTICE_S and not told:
                told = True
                _LOG.warning("waiting for %s, which changes %s", _holder(descriptor), path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_PAUSE_S)


def _try_lock(path: Path, descriptor: int) -> Callable[[], None] | None:
    """Return what gives the lock back, or None when somebody else holds it."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return None
    except ImportError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    held = _by_name(path)
    try:
        os.close(os.open(held, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return None
    return held.unlink


def _by_name(path: Path) -> Path:
    return path.with_name(f"{path.name}-held")


def _holder(descriptor: int) -> str:
    """Return who holds a lock, as far as its file says."""
    with suppress(OSError):
        if match := _HOLDER.fullmatch(os.pread(descriptor, 100, 0)):
            return f"process {match[1].decode()} on {match[2].decode()}"
    return "another process"


def _check_patience(path: Path, descriptor: int, waited_s: float) -> None:
    """Refuse to wait any longer for a lock."""
    if waited_s <= _PATIENCE_S:
        return
    step = "wait until it has ended or end it, then run this again"
    if _by_name(path).exists():
        step = f"if it has ended, remove {_by_name(path)}, then run this again"
    raise CacheWriteError(
        f"{_holder(descriptor)} has held the lock {path} for {_PATIENCE_S:.0f} s. Nothing was "
        f"changed: {step}"
    )


def _open(path: Path) -> int | None:
    with suppress(OSError):
        return os.open(path, os.O_RDONLY)
    return None


def _identity(path: Path, descriptor: int | None) -> tuple[int, int] | None:
    try:
        status = path.stat() if descriptor is None else os.fstat(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _current_identity(path: Path) -> tuple[int, int] | None:
    # Opening makes a network file system ask its server what the name stands for now.
    descriptor = _open(path)
    try:
        return _identity(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)
