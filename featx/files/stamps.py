"""What the system says of a file without its being read, and what that tells of its content."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike, NDArray

STAMP = ("size", "mtime_ns", "inode", "ctime_ns", "birth_ns")
"""The parts of a stamp. Two equal stamps, of which the first is settled, are of one content."""

# Nanoseconds between two changes of a file that certainly differ in their times. The coarsest are
# FAT's, of two seconds.
_SETTLED_NS = 2_000_000_000
_INT64 = (1 << 63) - 1
_BIRTH_KNOWN = hasattr(os.stat_result, "st_birthtime")  # macOS, BSD, Windows


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return size, modification time, inode, change time and birth time; -1 for no birth time."""
    # A program may set the modification time back. The change time is the system's own.
    birth_ns = int(status.st_birthtime * 1e9) if _BIRTH_KNOWN else -1  # type: ignore[attr-defined]
    inode = status.st_ino & _INT64
    return status.st_size, status.st_mtime_ns, inode, status.st_ctime_ns, birth_ns


def is_settled(stamps: ArrayLike, looked_ns: int) -> NDArray[np.bool_]:
    """Return whether a later change of a file must change its stamp, of shape (..., 5)."""
    newest = np.asarray(stamps, np.int64)[..., (1, 3)].max(axis=-1)
    return np.asarray(newest < looked_ns - _SETTLED_NS)
