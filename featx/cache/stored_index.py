"""The index of keys on disk: where each key of many shards lies, mapped from one file a space.

It only saves work: anybody may remove it, and without it the keys are read from the shards. An
entry is the beginning of a key and the place of its row. Whoever finds one compares the whole key
with that in the shard. docs/format.md has the layout.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import (
    Array,
    attribute,
    create,
    find_array,
    open_checked,
    read_array,
    read_strings,
    tag,
    write_array,
    write_chunks,
    write_strings,
)
from featx.cache.layout import CacheLayout, publish, reading
from featx.cache.shard import Shard
from featx.exceptions import CacheFormatError
from featx.files.identity import Keys

_KIND = "featx-key-index"
# Entries with one checksum: 32 KiB, which are read and compared in 10 microseconds.
_BLOCK = 2048
_STEPS = (*(1 << power for power in reversed(range(11))), 1)
_SORTED_AT_ONCE = 1 << 22  # entries that are held when an index is written
_ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64((1 << 32) - 1)
Words = NDArray[np.uint64]
"""Keys as four numbers each, shape (n, 4); entries as two, shape (n, 2)."""
Taps = tuple[str, ...]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ShardTable:
    """The shards of an index by number: names of files, rows, digests of keys (n, 32), taps."""

    names: list[str]
    rows: Numbers
    digests: NDArray[np.uint8]
    taps: list[Taps]  # the combinations that there are
    taps_of: Numbers  # number of the combination that a shard has

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> ShardTable:
        """Describe shards that are open."""
        digests = b"".join(bytes.fromhex(shard.keys.sha256) for shard in shards)
        taps, taps_of = _numbered(tuple(shard.taps) for shard in shards)
        return cls(
            [shard.path.name for shard in shards],
            np.array([len(shard) for shard in shards], np.int64),
            np.frombuffer(digests, np.uint8).reshape(-1, 32),
            taps,
            taps_of,
        )

    def joined(self, stays: Flags, more: ShardTable) -> ShardTable:
        """Return those of these shards that stay, and others after them."""
        of_these = [self.taps[number] for number in self.taps_of[stays].tolist()]
        of_more = [more.taps[number] for number in more.taps_of.tolist()]
        taps, taps_of = _numbered([*of_these, *of_more])
        return ShardTable(
            [*(self.names[number] for number in np.flatnonzero(stays).tolist()), *more.names],
            np.concatenate([self.rows[stays], more.rows]),
            np.concatenate([self.digests[stays], more.digests]),
            taps,
            taps_of,
        )

    def by_tap(self, chosen: Flags) -> dict[str, Flags]:
        """Return which of some shards have each tap."""
        having: dict[str, Flags] = {}
        for number, taps in enumerate(self.taps):
            alike = chosen & (self.taps_of == number)
            for tap in taps if alike.any() else ():
                having[tap] = having[tap] | alike if tap in having else alike
        return having

    def describes(self, number: int, shard: Shard) -> bool:
        """Return whether a shard is the one that was indexed under a number."""
        stated = int(self.rows[number]), self.digests[number].tobytes().hex()
        return stated == (len(shard), shard.keys.sha256)


def _numbered(every: Iterable[Taps]) -> tuple[list[Taps], Numbers]:
    """Return each combination of taps once, and which of these every one is."""
    number_of: dict[Taps, int] = {}
    numbers = [number_of.setdefault(taps, len(number_of)) for taps in every]
    return list(number_of), np.array(numbers, np.int64)


class StoredIndex:
    """Places of rows by key: the number of a shard and a row of it."""

    def __init__(self, table: ShardTable, entries: Array, firsts: Words, sums: Words) -> None:
        self.table = table
        self.array = entries
        self._entries: Words = np.asarray(entries.map())  # a memmap is slow to index
        self._firsts = firsts
        self._sums = sums
        self._sound = np.zeros(len(sums), np.bool_)

    def find(
        self, keys: Keys, usable: Flags, is_equal: Callable[[Numbers, Numbers, Keys], Flags]
    ) -> tuple[Numbers, Numbers]:
        """Return the shard and the row of each key, -1 where it is in no usable shard.

        `is_equal` tells which rows of shards have which keys.
        """
        shard, row = np.full((2, len(keys)), -1, np.int64)
        usable = np.append(usable, False)
        begins = _begins(keys)
        at = self._lower_bound(begins)
        left = np.arange(len(keys))
        # More than one pass only where a key is in several shards, or others begin like it.
        while left.size:
            inside = at < len(self._entries)
            left, at = left[inside], at[inside]
            self._check(at // _BLOCK)
            alike = self._entries[at, 0] == begins[left]
            left, at = left[alike], at[alike]
            number, number_row = self._unpack(self._entries[at, 1])
            candidate = np.flatnonzero(usable[number])
            equal = np.zeros(len(left), np.bool_)
            if candidate.size:
                equal[candidate] = is_equal(
                    number[candidate], number_row[candidate], keys[left[candidate]]
                )
            shard[left[equal]], row[left[equal]] = number[equal], number_row[equal]
            left, at = left[~equal], at[~equal] + 1
        return shard, row

    def between(self, low: int, last: int, numbers: Numbers) -> Words:
        """Return the entries of a range of beginnings, their shards numbered anew, -1 left out."""
        start = int(self._lower_bound(np.array([low], np.uint64))[0])
        stop = len(self._entries)
        if last < (1 << 64) - 1:
            stop = int(self._lower_bound(np.array([last + 1], np.uint64))[0])
        self._check(np.arange(start // _BLOCK, -(-stop // _BLOCK)))
        entries = self._entries[start:stop]
        shard, row = self._unpack(entries[:, 1])
        shard = np.append(numbers, -1)[shard]
        stays = shard >= 0
        return _joined(entries[stays, 0], shard[stays], row[stays])

    def _lower_bound(self, begins: Words) -> Numbers:
        """Return the first entry that does not come before each beginning of a key."""
        block = np.maximum(np.searchsorted(self._firsts, begins) - 1, 0)
        self._check(block)
        at = block * _BLOCK
        words = self._entries[:, 0]
        for step in _STEPS:
            at += step * (words[at + (step - 1)] < begins)
        return at

    def _check(self, blocks: NDArray[np.intp]) -> None:
        """Compare blocks with their checksums, each once."""
        for block in np.unique(blocks[~self._sound[blocks]]).tolist():
            entries = self._entries[block * _BLOCK : (block + 1) * _BLOCK]
            if zlib.crc32(entries.data) != int(self._sums[block]):
                raise CacheFormatError(
                    f"{self.array.path} is damaged: block {block} does not have its checksum"
                )
            self._sound[block] = True

    def _unpack(self, packed: Words) -> tuple[Numbers, Numbers]:
        """Return shards and rows; the number of shards stands for one that there is not."""
        shard = np.minimum(packed >> _ROW_BITS, len(self.table)).astype(np.int64)
        row = (packed & _ROW_MASK).astype(np.int64)
        shard[row >= np.append(self.table.rows, 0)[shard]] = len(self.table)
        return shard, row


def _begins(keys: Keys) -> Words:
    """Return the first eight bytes of keys as numbers."""
    return np.ascontiguousarray(keys).view("<u8")[:, 0]


def _joined(begins: Words, shard: Numbers | int, row: Numbers) -> Words:
    entries = np.empty((len(begins), 2), np.uint64)
    entries[:, 0] = begins
    entries[:, 1] = (np.asarray(shard).astype(np.uint64) << _ROW_BITS) | row.astype(np.uint64)
    return entries


def open_index(layout: CacheLayout, space: str) -> StoredIndex | None:
    """Return the index of a space, None where there is none that can be used."""
    with suppress(FileNotFoundError, CacheFormatError):
        return read_index(layout.index(space))
    return None


def read_index(path: Path) -> StoredIndex:
    """Open an index and check all of it but its entries, which are checked as they are used."""
    with open_checked(path, _KIND) as file:
        if attribute(file, "space") != path.stem:
            raise CacheFormatError(
                f"expected the index of the space {path.stem}, received that of "
                f"{attribute(file, 'space')}"
            )
        names = read_strings(file, "shards")
        rows = read_array(file, "rows", dtype="<i8").astype(np.int64)
        digests = read_array(file, "digests", dtype="|u1", ndim=2).astype(np.uint8)
        taps = [tuple(map(str, json.loads(text))) for text in read_strings(file, "taps")]
        taps_of = read_array(file, "taps_of", dtype="<i8").astype(np.int64)
        entries = find_array(file, "entries", "featx-array", ndim=2, dtypes=("<u8",))
        firsts = read_array(file, "firsts", dtype="<u8").astype(np.uint64)
        sums = read_array(file, "sums", dtype="<u8").astype(np.uint64)
        table = ShardTable(names, rows, digests, taps, taps_of)
        n, blocks = len(names), len(firsts)
        shapes = [values.shape for values in (rows, digests, taps_of, entries, firsts, sums)]
        expected = [(n,), (n, 32), (n,), (blocks * _BLOCK, 2), (blocks,), (blocks,)]
        if shapes != expected or not blocks:
            raise CacheFormatError("the arrays do not fit together")
    with reading(path):
        return StoredIndex(table, entries, firsts, sums)


def write_index(
    layout: CacheLayout,
    space: str,
    shards: Sequence[Shard],
    before: tuple[StoredIndex, Flags] | None = None,
) -> None:
    """Write the index of some shards, and of those of an earlier index that stay."""
    table, first_number = ShardTable.of(shards), 0
    if before is not None:
        index, stays = before
        first_number = int(stays.sum())
        table = index.table.joined(stays, table)
        numbers = np.where(stays, np.cumsum(stays) - 1, -1)
    total = int(table.rows.sum())
    firsts: list[Words] = []
    sums: list[int] = []

    def sorted_chunks() -> Iterator[Words]:
        parts = -(-total // _SORTED_AT_ONCE)
        for low, high in pairwise([(part << 64) // parts for part in range(parts + 1)]):
            chunks = list(_entries_between(low, high - 1, shards, first_number))
            if before is not None:
                chunks.append(index.between(low, high - 1, numbers))
            entries = np.concatenate(chunks)
            del chunks
            yield entries[np.argsort(entries[:, 0])]

    def blocks() -> Iterator[Words]:
        for entries in _whole_blocks(sorted_chunks()):
            firsts.append(entries[::_BLOCK, 0].copy())
            for start in range(0, len(entries), _BLOCK):
                sums.append(zlib.crc32(entries[start : start + _BLOCK].data))
            yield entries

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, _KIND)
            file.attrs["space"] = np.bytes_(space.encode())
            write_strings(file, "shards", table.names)
            write_array(file, "rows", table.rows, "featx-array")
            write_array(file, "digests", table.digests, "featx-array")
            write_strings(file, "taps", [json.dumps(taps) for taps in table.taps])
            write_array(file, "taps_of", table.taps_of, "featx-array")
            shape = -(-total // _BLOCK) * _BLOCK, 2
            write_chunks(file, "entries", shape, np.dtype("<u8"), blocks(), "featx-array")
            write_array(file, "firsts", np.concatenate(firsts), "featx-array")
            write_array(file, "sums", np.array(sums, np.uint64), "featx-array")

    publish(layout, layout.index(space), write)


def _entries_between(
    low: int, last: int, shards: Sequence[Shard], first_number: int
) -> Iterator[Words]:
    """Yield the entries of shards in a range of beginnings."""
    # Mapped again for each range: a process may have few files open.
    for number, shard in enumerate(shards, first_number):
        begins = _begins(shard.keys.map())
        rows = np.flatnonzero(begins - np.uint64(low) <= np.uint64(last - low))  # modulo 2^64
        yield _joined(begins[rows], number, rows)


def _whole_blocks(chunks: Iterable[Words]) -> Iterator[Words]:
    """Cut entries at the ends of blocks, and fill the last one with entries of no row."""
    rest = np.empty((0, 2), np.uint64)
    for chunk in chunks:
        joined = np.concatenate([rest, chunk])
        stop = len(joined) // _BLOCK * _BLOCK
        if stop:
            yield joined[:stop]
        rest = joined[stop:]
    if len(rest):
        padding = np.full((_BLOCK - len(rest), 2), (1 << 64) - 1, np.uint64)
        yield np.concatenate([rest, padding])
