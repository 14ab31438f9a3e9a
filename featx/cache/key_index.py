"""Find many keys among millions: a sorted column of prefixes, checked against whole keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeyIndex"]


class KeyIndex:
    """Rows by key.

    Parameters
    ----------
    parts : sequence of ndarray of shape (n, 32), uint8
        Keys of each shard. Where a key occurs more than once, any of its rows stands for it.

    Examples
    --------
    >>> keys = np.arange(64, dtype=np.uint8).reshape(2, 32)
    >>> KeyIndex([keys]).find(keys[::-1])
    (array([0, 0]), array([1, 0]))
    """

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self._ends = np.cumsum([0, *(len(part) for part in parts)])
        whole = np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)
        self._keys = np.ascontiguousarray(whole)
        prefix = _prefix(self._keys)
        self._order = np.argsort(prefix)
        self._sorted = prefix[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part and the row of each key, -1 where it is not here.

        Parameters
        ----------
        keys : ndarray of shape (m, 32), uint8

        Returns
        -------
        part, row : ndarray of shape (m,), int64
        """
        place = self._find_places(np.ascontiguousarray(keys))
        part = np.searchsorted(self._ends, place, side="right") - 1
        row = place - self._ends[part]
        missing = place < 0
        part[missing] = -1
        row[missing] = -1
        return part, row

    def _find_places(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = np.full(len(keys), -1, np.int64)
        if not len(self._keys) or not len(keys):
            return found
        prefix = _prefix(keys)
        first = np.searchsorted(self._sorted, prefix, side="left")
        open_rows = np.flatnonzero(first < len(self._sorted))
        step = 0
        # More than one pass only where whole keys differ after equal first 8 bytes.
        while open_rows.size:
            at = first[open_rows] + step
            inside = at < len(self._sorted)
            open_rows, at = open_rows[inside], at[inside]
            same_prefix = self._sorted[at] == prefix[open_rows]
            open_rows, at = open_rows[same_prefix], at[same_prefix]
            candidate = self._order[at]
            equal = (self._keys[candidate] == keys[open_rows]).all(axis=1)
            found[open_rows[equal]] = candidate[equal]
            open_rows = open_rows[~equal]
            step += 1
        return found


def _prefix(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
