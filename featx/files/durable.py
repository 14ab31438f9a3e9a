"""Files that appear whole or not at all, and are still there after a power cut."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDERS_OPEN = os.name != "nt"  # Windows gives no handle of a folder
# What file systems say that flush no folder: some networks, FUSE, folders shared with a host.
_NO_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# A folder may let files be written into it and not be listed.
_NOT_LISTED = {errno.EACCES, errno.EPERM, errno.EISDIR}
# So many characters of a name leave room for the rest, whatever script they are of.
_KEPT = 60


@contextmanager
def written_whole(
    target: Path,
    *,
    temporary: Path | None = None,
    move: Callable[[Path, Path], None] | None = None,
) -> Iterator[Path]:
    """Yield a path to write a file at, which is flushed and takes the place of `target` at the end.

    At any instant `target` is absent, the old file, or the new one. It is written beside `target`,
    or at `temporary` on the same file system; `move` is another way to bring it to its name.
    """
    unfinished = beside(target) if temporary is None else temporary
    try:
        yield unfinished
        flush(unfinished)
        if move is None:
            unfinished.replace(target)
        else:
            move(unfinished, target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    flush_names(target.parent)


def beside(target: Path) -> Path:
    """Return a hidden name in the folder of `target` that nothing has."""
    return target.with_name(f".{target.name[:_KEPT]}.{secrets.token_hex(4)}.tmp")


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        flush_names(path)
        return
    _flush(path, os.O_RDWR)  # Windows flushes only what is open for writing


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system has a way to."""
    if not _FOLDERS_OPEN:
        return
    try:
        _flush(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError as error:
        if error.errno not in _NO_FLUSH | _NOT_LISTED:
            raise


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
