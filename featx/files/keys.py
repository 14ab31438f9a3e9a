"""Keys of files (SHA-256 of their bytes): which rows are equal, and which belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint8]


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
