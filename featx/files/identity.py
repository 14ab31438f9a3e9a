"""What identifies a file: its key, the SHA-256 of its bytes, and its stamp, without being read."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys: TypeAlias = NDArray[np.uint8]
"""Keys of rows, shape (n, 32)."""
STAMP = ("size", "mtime_ns", "inode", "ctime_ns", "birth_ns")
"""The parts of a stamp. Two equal stamps, of which the first is settled, are of one content."""

# Nanoseconds between two changes of a file that certainly differ in their times. The coarsest are
# FAT's, of two seconds.
_SETTLED_NS = 2_000_000_000
_INT64 = (1 << 63) - 1
_BIRTH_KNOWN = hasattr(os.stat_result, "st_birthtime")  # macOS, BSD, Windows


def whole_keys(keys: Keys) -> NDArray[np.bytes_]:
    """Return keys of shape (n, 32) as n values that can be sorted and compared."""
    # Of 32 bytes each, texts are equal only where the keys are: padding is with zeros too.
    return np.ascontiguousarray(keys).view("S32").ravel()


def copies(keys: Keys) -> NDArray[np.intp]:
    """Return which rows of shape (n, 32) equal an earlier one."""
    # Sorted by the first 8 bytes, a quarter of the memory; whole keys only where these are equal.
    prefix = np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
    order = np.argsort(prefix, kind="stable")
    equal = np.flatnonzero(prefix[order[1:]] == prefix[order[:-1]])
    rows = np.unique(np.concatenate([order[equal], order[equal + 1]]))
    _, first, group = np.unique(whole_keys(keys[rows]), return_index=True, return_inverse=True)
    repeated: NDArray[np.intp] = rows[first[group] != np.arange(len(rows))]
    return repeated


def related_rows(
    keys: Keys | None, groups: Sequence[str] | NDArray[np.str_] | None
) -> NDArray[np.int64]:
    """Return for each row the first of those that share its key, its group, or a chain of both.

    Empty text is no group. Related rows belong on one side of a split.
    """
    parts = []
    if keys is not None:
        parts.append(np.unique(whole_keys(keys), return_inverse=True)[1])
    if groups is not None:
        names = np.asarray(groups, dtype=np.str_)
        known, group = np.unique(names, return_inverse=True)
        parts.append(np.where(names == "", len(known) + np.arange(len(names)), group))
    heads = np.arange(len(parts[0]))
    before = None
    while before is None or not np.array_equal(heads, before):
        before = heads
        for part in parts:
            least = np.full(int(part.max(initial=-1)) + 1, len(heads))
            np.minimum.at(least, part, heads)
            heads = least[part]
        # The head of a related row is related too, so that chains halve.
        heads = heads[heads]
    return heads


def content_groups(
    keys: Keys, groups: Sequence[str] | NDArray[np.str_] | None
) -> NDArray[np.int64]:
    """Return for each row a number that related rows share, drawn from the content of the images.

    It is the smallest of the first 63 bits of their keys, whatever rows there are beside them.
    """
    related = related_rows(keys, groups)
    numbers = (np.ascontiguousarray(keys[:, :8]).view(">u8").ravel() >> 1).astype(np.int64)
    least = np.full(len(keys), _INT64)
    np.minimum.at(least, related, numbers)
    return np.asarray(least[related])


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return size, modification time, inode, change time and birth time; -1 for no birth time."""
    # A program may set the modification time back. The change time is the system's own.
    birth_ns = int(status.st_birthtime * 1e9) if _BIRTH_KNOWN else -1  # type: ignore[attr-defined]
    inode = status.st_ino & _INT64
    return status.st_size, status.st_mtime_ns, inode, status.st_ctime_ns, birth_ns


def file_stamps(paths: Iterable[str | os.PathLike[str]]) -> NDArray[np.int64]:
    """Return the stamp of each file, shape (n, 5), -1 where there is none."""
    stamps = array("q")  # filled faster than the rows of an ndarray
    for path in paths:
        try:
            stamps.extend(stamp_of(os.stat(path)))
        except (OSError, ValueError):
            stamps.extend((-1,) * len(STAMP))
    return np.frombuffer(stamps, np.int64).reshape(-1, len(STAMP))


def is_settled(stamps: ArrayLike, looked_ns: int) -> NDArray[np.bool_]:
    """Return whether a later change of a file must change its stamp, of shape (..., 5)."""
    newest = np.asarray(stamps, np.int64)[..., (1, 3)].max(axis=-1)
    return np.asarray(newest < looked_ns - _SETTLED_NS)
