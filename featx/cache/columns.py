"""Columns of many rows, in pieces: mapped from files or in memory, and read where they lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)
Bytes = NDArray[np.uint8]
Ends = NDArray[np.int64]
_BLOCK_ROWS = 1 << 16


class Text(NamedTuple):
    """UTF-8 text of some rows end to end, where each ends, and the digests of both, if known."""

    data: Bytes
    ends: Ends
    digests: tuple[str, str] | None = None


class Numbers(Generic[T]):
    """A column of numbers; each piece may have the SHA-256 of its bytes."""

    def __init__(
        self, pieces: Sequence[NDArray[T]], digests: Sequence[str | None] | None = None
    ) -> None:
        self.pieces = tuple(pieces)
        self.digests = tuple(digests or repeat(None, len(self.pieces)))
        self.bounds = [0, *accumulate(map(len, self.pieces))]
        self._values: NDArray[T] | None = self.pieces[0] if len(self.pieces) == 1 else None

    def __len__(self) -> int:
        return self.bounds[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Numbers, ((self.values,),)

    @property
    def values(self) -> NDArray[T]:
        """All rows as one array, which several pieces are copied into once."""
        if self._values is None:
            self._values = np.concatenate(self.pieces)
        return self._values

    def take(self, rows: NDArray[np.intp]) -> Numbers[T]:
        """Return some rows."""
        if len(self.pieces) == 1:
            return Numbers([self.pieces[0][rows]])
        first = self.pieces[0]
        taken = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number, slots, within in _by_piece(self.bounds, rows):
            taken[slots] = self.pieces[number][within]
        return Numbers([taken])

    def span(self, start: int, stop: int) -> tuple[NDArray[T], str | None]:
        """Return the rows from one to another, and the digest of their bytes, if it is known."""
        for piece, digest, bounds in zip(
            self.pieces, self.digests, pairwise(self.bounds), strict=True
        ):
            if bounds == (start, stop):
                return piece, digest
        inner = [
            piece[max(0, start - first) : stop - first]
            for piece, (first, last) in zip(self.pieces, pairwise(self.bounds), strict=True)
            if start < last and first < stop
        ] or [self.pieces[0][:0]]
        return inner[0] if len(inner) == 1 else np.concatenate(inner), None

    def joined(self, other: Numbers[T]) -> Numbers[T]:
        """Return the rows of this column and, below them, those of another."""
        return Numbers((*self.pieces, *other.pieces), (*self.digests, *other.digests))

    def equals(self, other: Numbers[T]) -> bool:
        """Return whether another column has the same rows."""
        if self is other or (self.bounds == other.bounds and _alike(self.digests, other.digests)):
            return True
        if len(self) != len(other):
            return False
        cuts = sorted({*self.bounds, *other.bounds})
        return all(
            np.array_equal(self.span(*cut)[0], other.span(*cut)[0]) for cut in pairwise(cuts)
        )


class Strings(Sequence[str]):
    """A column of text, which is bytes until a row is asked for."""

    def __init__(self, pieces: Sequence[Text]) -> None:
        self.pieces = tuple(pieces)
        self.bounds = [0, *accumulate(len(piece.ends) for piece in self.pieces)]

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        """Return a column of strings that are in memory."""
        if isinstance(values, Strings):
            return values
        values = values if isinstance(values, Sequence) else list(values)
        text = "".join(values).encode("utf-8", "surrogateescape")
        if not text:
            return cls.blank(len(values))
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        if sizes.sum() != len(text):  # else all is ASCII, of which no second copy is needed
            each = (len(value.encode("utf-8", "surrogateescape")) for value in values)
            sizes = np.fromiter(each, np.int64, len(values))
        return cls([Text(np.frombuffer(text, np.uint8), np.cumsum(sizes))])

    @classmethod
    def blank(cls, count: int) -> Strings:
        """Return a column of empty strings, which takes no memory."""
        ends: Ends = np.broadcast_to(np.int64(0), (count,))
        return cls([Text(np.empty(0, np.uint8), ends)])

    def __len__(self) -> int:
        return self.bounds[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        data, ends, _ = self.span(0, len(self))
        return _unpickled, (data, ends) if len(data) else (data, len(ends))

    def __repr__(self) -> str:
        return f"<Strings: {len(self):,} rows>"

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | Strings:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step == 1:
                return Strings([self.span(rows.start, max(rows.start, rows.stop))])
            return self.take(np.array(rows, np.intp))
        row = range(len(self))[index]
        number = bisect_right(self.bounds, row) - 1
        data, ends, _ = self.pieces[number]
        row -= self.bounds[number]
        start = int(ends[row - 1]) if row else 0
        return data[start : int(ends[row])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks():
            yield from _decoded(self.span(*block))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and bool((self.find([value]) >= 0).any())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(map(str.__eq__, self, other))
        if not isinstance(other, Strings):
            return NotImplemented
        if self is other or (
            self.bounds == other.bounds
            and _alike([t.digests for t in self.pieces], [t.digests for t in other.pieces])
        ):
            return True
        return len(self) == len(other) and all(
            np.array_equal(mine.ends, theirs.ends) and np.array_equal(mine.data, theirs.data)
            for mine, theirs in self._side_by_side(other)
        )

    __hash__ = None  # type: ignore[assignment]

    def span(self, start: int, stop: int) -> Text:
        """Return the rows from one to another as one piece."""
        for piece, bounds in zip(self.pieces, pairwise(self.bounds), strict=True):
            if bounds == (start, stop):
                return piece
        inner = [
            _cut(piece, max(0, start - first), stop - first)
            for piece, (first, last) in zip(self.pieces, pairwise(self.bounds), strict=True)
            if start < last and first < stop
        ] or [Text(np.empty(0, np.uint8), np.empty(0, np.int64))]
        if len(inner) == 1:
            return inner[0]
        if not any(len(piece.data) for piece in inner):
            return Strings.blank(stop - start).pieces[0]
        starts = accumulate((len(piece.data) for piece in inner[:-1]), initial=0)
        ends = np.concatenate([p.ends + at for p, at in zip(inner, starts, strict=True)])
        return Text(np.concatenate([piece.data for piece in inner]), ends)

    def take(self, rows: NDArray[np.intp]) -> Strings:
        """Return some rows."""
        if not self.any():
            return Strings.blank(len(rows))
        starts, sizes = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        parts = list(_by_piece(self.bounds, rows))
        for number, slots, within in parts:
            ends = self.pieces[number].ends
            starts[slots] = np.where(within > 0, ends[within - 1], 0)
            sizes[slots] = ends[within] - starts[slots]
        ends = np.cumsum(sizes)
        data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        for number, slots, within in parts:
            source = self.pieces[number].data
            for first in range(0, len(within), _BLOCK_ROWS):
                block = np.arange(first, min(first + _BLOCK_ROWS, len(within)))
                block = block + slots.start if isinstance(slots, slice) else slots[block]
                _copy(source, starts[block], sizes[block], data, ends[block] - sizes[block])
        return Strings([Text(data, ends)])

    def joined(self, other: Sequence[str]) -> Strings:
        """Return the rows of this column and, below them, those of another."""
        return Strings((*self.pieces, *Strings.of(other).pieces))

    def changed(self, rows: NDArray[np.intp], values: Sequence[str]) -> Strings:
        """Return the column with other text in some rows."""
        if not len(rows):
            return self
        source = np.arange(len(self))
        source[rows] = len(self) + np.arange(len(rows))
        return self.joined(values).take(source)

    def any(self) -> bool:
        """Return whether any row has text."""
        return any(len(piece.data) for piece in self.pieces)

    def filled(self) -> NDArray[np.bool_]:
        """Return which rows have text."""
        return np.concatenate([np.diff(piece.ends, prepend=0) > 0 for piece in self.pieces])

    def same_rows(self, other: Strings) -> NDArray[np.bool_]:
        """Return in which rows another column of as many has the same text."""
        same = np.ones(len(self), np.bool_)
        first = 0
        for mine, theirs in self._side_by_side(other):
            here = same[first : first + len(mine.ends)]
            first += len(here)
            if np.array_equal(mine.ends, theirs.ends) and np.array_equal(mine.data, theirs.data):
                continue
            np.equal(np.diff(mine.ends, prepend=0), np.diff(theirs.ends, prepend=0), out=here)
            rows = np.flatnonzero(here)
            left, right = (Strings([text]).take(rows).pieces[0] for text in (mine, theirs))
            wrong = np.flatnonzero(left.data != right.data)
            here[rows[np.searchsorted(left.ends, wrong, side="right")]] = False
        return same

    def find(self, values: Sequence[str]) -> NDArray[np.intp]:
        """Return for each of some texts the last row that has it, -1 where none has."""
        values = Strings.of(values)
        mine, theirs = self._hashes(), values._hashes()
        order = _fitting(mine, theirs)
        order = order[np.argsort(mine[order], kind="stable")]
        mine = mine[order]
        at = np.searchsorted(mine, theirs, side="right") - 1
        known = np.flatnonzero(at >= 0)
        known = known[mine[at[known]] == theirs[known]]
        rows = np.full(len(values), -1, np.intp)
        rows[known] = order[at[known]]
        equal = self.take(rows[known]).same_rows(values.take(known))
        for number in known[~equal].tolist():  # other texts of the same hash, which are rare
            first = np.searchsorted(mine, theirs[number])
            alike = order[first : at[number] + 1].tolist()
            fits = [row for row in alike if self[row] == values[number]]
            rows[number] = max(fits, default=-1)
        return rows

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the rows in blocks that lie in one piece each."""
        for first, last in pairwise(self.bounds):
            for start in range(first, last, _BLOCK_ROWS):
                yield start, min(start + _BLOCK_ROWS, last)

    def _side_by_side(self, other: Strings) -> Iterator[tuple[Text, Text]]:
        for block in self._blocks():
            yield self.span(*block), other.span(*block)

    def _hashes(self) -> NDArray[np.uint64]:
        """Return a number for each row: the sum of its bytes, each times a number of its place."""
        hashes = np.zeros(len(self), np.uint64)
        weights = _weights(0)
        for start, stop in self._blocks():
            data, ends, _ = self.span(start, stop)
            sizes = np.diff(ends, prepend=0)
            rows = np.flatnonzero(sizes)
            if not len(rows):
                continue
            if int(sizes.max()) > len(weights):
                weights = _weights(int(sizes.max()))
            starts = (ends - sizes)[rows]
            within = np.arange(len(data)) - np.repeat(starts, sizes[rows])
            terms = (data + np.uint64(1)) * weights[within]
            hashes[start + rows] = np.add.reduceat(terms, starts)
        return hashes


def _weights(count: int) -> NDArray[np.uint64]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 1 << 64, max(count, 4096), np.uint64, endpoint=False)


def _fitting(hashes: NDArray[np.uint64], sought: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the rows that can be among those sought: all, where these are many."""
    if not len(sought) or 16 * len(sought) > len(hashes):
        return np.arange(len(hashes))
    sought = np.sort(sought)
    at = np.minimum(np.searchsorted(sought, hashes), len(sought) - 1)
    return np.flatnonzero(sought[at] == hashes)


def _unpickled(data: Bytes, ends: Ends | int) -> Strings:
    return Strings.blank(ends) if isinstance(ends, int) else Strings([Text(data, ends)])


def _alike(first: Sequence[object], second: Sequence[object]) -> bool:
    return None not in first and list(first) == list(second)


def _cut(piece: Text, start: int, stop: int) -> Text:
    """Return some rows of a piece, whose ends count from the first of them."""
    first = int(piece.ends[start - 1]) if start else 0
    ends = piece.ends[start:stop]
    last = int(ends[-1]) if len(ends) else first
    return Text(piece.data[first:last], ends - first if first else ends)


def _decoded(text: Text) -> Iterator[str]:
    data, ends, _ = text
    if not len(data):
        yield from repeat("", len(ends))
        return
    whole = data.tobytes()
    spans = pairwise([0, *ends.tolist()])
    if whole.isascii():  # one piece of text is cut more than twice as fast as bytes
        letters = whole.decode("ascii")
        yield from (letters[start:stop] for start, stop in spans)
    else:
        yield from (whole[start:stop].decode("utf-8", "surrogateescape") for start, stop in spans)


def _copy(source: Bytes, starts: Ends, sizes: Ends, target: Bytes, to: Ends) -> None:
    """Copy spans of bytes to places of another array."""
    total = int(sizes.sum())
    before = np.cumsum(sizes) - sizes
    one_after_other = np.arange(total)

    def places(of: Ends) -> slice | NDArray[np.int64]:
        if len(of) and np.array_equal(of - of[0], before):
            return slice(int(of[0]), int(of[0]) + total)
        spread: NDArray[np.int64] = one_after_other + np.repeat(of - before, sizes)
        return spread

    if total:
        target[places(to)] = source[places(starts)]


def _by_piece(
    bounds: Sequence[int], rows: NDArray[np.intp]
) -> Iterator[tuple[int, slice | NDArray[np.intp], NDArray[np.intp]]]:
    """Yield for each piece its number, where its rows go, and which rows of the piece they are."""
    if len(rows) and not -bounds[-1] <= rows.min() <= rows.max() < bounds[-1]:
        raise IndexError(f"expected rows below {bounds[-1]:,}, received {rows.max():,}")
    rows = np.where(rows < 0, rows + bounds[-1], rows) if len(rows) and rows.min() < 0 else rows
    order = None if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")
    if order is not None and len(bounds) == 2:
        yield 0, slice(0, len(rows)), rows
        return
    ascending = rows if order is None else rows[order]
    edges = np.searchsorted(ascending, bounds).tolist()
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            slots = slice(start, stop) if order is None else order[start:stop]
            yield number, slots, ascending[start:stop] - bounds[number]
