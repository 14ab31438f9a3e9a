"""Rows by key, held in memory: 40 bytes a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import Array
from featx.files.identity import Keys

# A run is joined with the one before it unless that one is this many times as long: a look-up then
# meets few runs, and a shard that comes to millions of rows does not sort them all again.
_GROWTH = 8
_BLOCK_ROWS = 1 << 20
_ROW_MASK = np.uint64((1 << 32) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Some rows, sorted by the beginning of their keys."""

    words: NDArray[np.uint64]  # the keys, shape (n, 4)
    # The first 32 bits of a key and the 32 bits of its row, rising: numbers are sorted ten times
    # faster than rows by their numbers.
    slots: NDArray[np.uint64]

    @classmethod
    def of(cls, words: NDArray[np.uint64]) -> _Run:
        slots = np.arange(len(words), dtype=np.uint64)
        for start in range(0, len(words), _BLOCK_ROWS):  # a copy of all would be a fifth more
            block = slice(start, start + _BLOCK_ROWS)
            slots[block] |= _prefix(words[block])
        slots.sort()
        return cls(words, slots)

    def __len__(self) -> int:
        return len(self.words)

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it is not here."""
        rows = np.full(len(words), -1, np.int64)
        prefix = _prefix(words)
        at = np.searchsorted(self.slots, prefix)
        left = np.arange(len(words))
        # More than one pass only where whole keys differ after equal beginnings.
        while left.size:
            inside = at < len(self)
            left, at = left[inside], at[inside]
            slot = self.slots[at]
            row = (slot & _ROW_MASK).astype(np.int64)
            alike = slot & ~_ROW_MASK == prefix[left]
            left, at, row = left[alike], at[alike], row[alike]
            equal = (self.words[row] == words[left]).all(axis=1)
            rows[left[equal]] = row[equal]
            left, at = left[~equal], at[~equal] + 1
        return rows


def _prefix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    prefix: NDArray[np.uint64] = words[:, 0] & ~_ROW_MASK
    return prefix


class KeyIndex:
    """Rows by key; where a key occurs more than once, any of its rows stands for it."""

    def __init__(self, parts: Sequence[Keys | Array] = ()) -> None:
        self._ends = np.cumsum([0, *(part.shape[0] for part in parts)])
        self._runs = (_Run.of(_words(parts)),) if len(self) else ()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def extended(self, parts: Sequence[Keys | Array]) -> KeyIndex:
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

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part and the row of each key, -1 where it is not here."""
        slot = np.full(len(keys), -1, np.int64)
        words = np.ascontiguousarray(keys).view(np.uint64)
        left = np.arange(len(keys))
        start = 0
        for run in self._runs:
            row = run.find(words[left])
            here = row >= 0
            slot[left[here]] = row[here] + start
            left = left[~here]
            start += len(run)
        part = np.searchsorted(self._ends, slot, side="right") - 1
        row = slot - self._ends[part]
        missing = slot < 0
        part[missing] = -1
        row[missing] = -1
        return part, row


def _words(parts: Sequence[Keys | Array]) -> NDArray[np.uint64]:
    words = np.empty((sum(part.shape[0] for part in parts), 4), np.uint64)
    start = 0
    for part in parts:  # mapped one at a time: a process may have few files open
        keys = part.map() if isinstance(part, Array) else part
        words[start : start + len(keys)] = np.ascontiguousarray(keys).view(np.uint64)
        start += len(keys)
    return words
