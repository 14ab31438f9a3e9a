"""Find many keys among millions: sorted columns of prefixes, checked against whole keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import Array

# A run is joined with the one before it unless that one is this many times as long: a look-up then
# meets few runs, and a shard that comes to millions of rows does not sort them all again.
_GROWTH = 8
_BLOCK_ROWS = 1 << 20
_ROW_MASK = np.uint64((1 << 32) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Some rows, sorted by the beginning of their keys.

    Parameters
    ----------
    words : ndarray of shape (n, 4), uint64
        The keys.
    places : ndarray of shape (n,), uint64
        The first 32 bits of a key and the 32 bits of its row, rising: numbers are sorted ten times
        faster than rows by their numbers.
    """

    words: NDArray[np.uint64]
    places: NDArray[np.uint64]

    @classmethod
    def of(cls, words: NDArray[np.uint64]) -> _Run:
        places = np.arange(len(words), dtype=np.uint64)
        for start in range(0, len(words), _BLOCK_ROWS):  # a copy of all would be a fifth more
            block = slice(start, start + _BLOCK_ROWS)
            places[block] |= _prefix(words[block])
        places.sort()
        return cls(words, places)

    def __len__(self) -> int:
        return len(self.words)

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it is not here."""
        found = np.full(len(words), -1, np.int64)
        prefix = _prefix(words)
        at = np.searchsorted(self.places, prefix)
        left = np.arange(len(words))
        # More than one pass only where whole keys differ after equal beginnings.
        while left.size:
            inside = at < len(self)
            left, at = left[inside], at[inside]
            place = self.places[at]
            row = (place & _ROW_MASK).astype(np.int64)
            alike = place & ~_ROW_MASK == prefix[left]
            left, at, row = left[alike], at[alike], row[alike]
            equal = (self.words[row] == words[left]).all(axis=1)
            found[left[equal]] = row[equal]
            left, at = left[~equal], at[~equal] + 1
        return found


def _prefix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    prefix: NDArray[np.uint64] = words[:, 0] & ~_ROW_MASK
    return prefix


class KeyIndex:
    """Rows by key; it does not change, but can be extended.

    Parameters
    ----------
    parts : sequence of ndarray or Array of shape (n, 32), uint8
        Keys of each shard. Those in files are mapped one at a time, for a process may have few
        files open. Where a key occurs more than once, any of its rows stands for it.

    Examples
    --------
    >>> keys = np.arange(64, dtype=np.uint8).reshape(2, 32)
    >>> KeyIndex([keys]).find(keys[::-1])
    (array([0, 0]), array([1, 0]))
    """

    def __init__(self, parts: Sequence[NDArray[np.uint8] | Array] = ()) -> None:
        self._ends = np.cumsum([0, *(part.shape[0] for part in parts)])
        self._runs = (_Run.of(_words(parts)),) if len(self) else ()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def extended(self, parts: Sequence[NDArray[np.uint8] | Array]) -> KeyIndex:
        """Return an index that has these parts, too, after those of this one."""
        if not parts:
            return self
        more = KeyIndex(parts)
        whole = KeyIndex()
        whole._ends = np.concatenate([self._ends, self._ends[-1] + more._ends[1:]])
        runs = [*self._runs, *more._runs]
        while len(runs) > 1 and len(runs[-2]) < _GROWTH * len(runs[-1]):
            runs[-2:] = [_Run.of(np.concatenate([run.words for run in runs[-2:]]))]
        whole._runs = tuple(runs)
        return whole

    def find(self, keys: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part and the row of each key, -1 where it is not here.

        Parameters
        ----------
        keys : ndarray of shape (m, 32), uint8

        Returns
        -------
        part, row : ndarray of shape (m,), int64
        """
        place = self._find_places(keys)
        part = np.searchsorted(self._ends, place, side="right") - 1
        row = place - self._ends[part]
        missing = place < 0
        part[missing] = -1
        row[missing] = -1
        return part, row

    def _find_places(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = np.full(len(keys), -1, np.int64)
        words = np.ascontiguousarray(keys).view(np.uint64)
        left = np.arange(len(keys))
        start = 0
        for run in self._runs:
            row = run.find(words[left])
            here = row >= 0
            found[left[here]] = row[here] + start
            left = left[~here]
            start += len(run)
        return found


def _words(parts: Sequence[NDArray[np.uint8] | Array]) -> NDArray[np.uint64]:
    words = np.empty((sum(part.shape[0] for part in parts), 4), np.uint64)
    start = 0
    for part in parts:
        keys = part.map() if isinstance(part, Array) else part
        words[start : start + len(keys)] = np.ascontiguousarray(keys).view(np.uint64)
        start += len(keys)
    return words
