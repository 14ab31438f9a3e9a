"""Features to learn from, as batches that can be read again and again; a matrix is one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import HeadError

Floats: TypeAlias = NDArray[np.floating]
Doubles: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.intp]
Batch: TypeAlias = tuple[Floats, Numbers]
Fold: TypeAlias = tuple[Numbers, Numbers]
"""Rows for training and rows for testing."""
BatchSource: TypeAlias = Callable[[int | None], Iterable[Batch]]
"""Gives, for a seed, one pass: pairs of features (b, d) and their row numbers (b,).

Every row comes once a pass, in an order that the seed draws, or in any order for None.
"""

_BLOCK_BYTES = 16 * 2**20
_LEAST_DRAWN = 1000
_BYTES_OF_A_SCORE = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of features, in memory or in batches that are read anew for every pass."""

    count: int
    width: int
    # All of them, where they are in memory, or what gives a pass over them.
    matrix: Floats | None = None
    source: Callable[[int | None], Iterator[Batch]] | None = None
    # What learning may hold beside the batches; None where nothing bounds it.
    max_ram_bytes: int | None = None

    @classmethod
    def of(cls, X: Floats) -> Rows:
        """Return the rows of a matrix."""
        return cls(X.shape[0], X.shape[1], matrix=X)

    @classmethod
    def stream(cls, source: BatchSource, count: int, max_ram_bytes: int) -> Rows:
        """Return the rows of a source, each batch of which is checked when it comes."""
        first = next(iter(source(None)), None)
        if first is None:
            raise HeadError(
                "the stream gave no batch: expected pairs (X, rows) from every call of the source"
            )
        width = require_batch(*first, count)[0].shape[1]

        def checked(seed: int | None) -> Iterator[Batch]:
            for X, numbers in source(seed):
                yield require_batch(X, numbers, count, width)

        return cls(count, width, source=checked, max_ram_bytes=max_ram_bytes)

    def __len__(self) -> int:
        return self.count

    def batches(self, seed: int | None = None) -> Iterator[Batch]:
        """Yield every row once with its number; of a matrix, views of at most 16 MiB."""
        if self.source is not None:
            yield from self.source(seed)
            return
        assert self.matrix is not None
        step = max(1, _BLOCK_BYTES // max(1, self.width * self.matrix.itemsize))
        for start in range(0, self.count, step):
            part = self.matrix[start : start + step]
            yield part, np.arange(start, start + len(part))

    def take(self, chosen: Numbers) -> Rows:
        """Return some rows, ascending, numbered anew from 0."""
        if len(chosen) == self.count:
            return self
        if self.matrix is not None:
            return Rows(len(chosen), self.width, self.matrix[chosen], None, self.max_ram_bytes)
        position = np.full(self.count, -1)
        position[chosen] = np.arange(len(chosen))

        def source(seed: int | None) -> Iterator[Batch]:
            for X, numbers in self.batches(seed):
                positions = position[numbers]
                if (inside := positions >= 0).any():
                    yield (X, positions) if inside.all() else (X[inside], positions[inside])

        return Rows(len(chosen), self.width, None, source, self.max_ram_bytes)

    def through(self, transform: Callable[[Floats], Floats]) -> Rows:
        """Return the rows behind a transform of batches that keeps their width."""

        def source(seed: int | None) -> Iterator[Batch]:
            for X, numbers in self.batches(seed):
                yield transform(X), numbers

        return replace(self, source=source)

    def gather(self) -> Floats:
        """Return all rows as one matrix."""
        if self.matrix is not None:
            return self.matrix
        X = np.empty((self.count, self.width), np.float32)
        for part, numbers in self.batches():
            X[numbers] = part
        return X

    def scores(self, score: Callable[[Floats], Floats], columns: int) -> Floats:
        """Return what a function says of each row, shape (count, columns)."""
        if self.matrix is not None:
            return score(self.matrix).reshape(self.count, columns)
        values = np.empty((self.count, columns))
        for X, numbers in self.batches():
            values[numbers] = score(X).reshape(len(X), columns)
        return values

    def drawn(self, rows: Numbers, columns: int) -> Numbers:
        """Return as many of some rows as scores of so many columns fit within the bound of."""
        if self.max_ram_bytes is None:
            return rows
        return sampled(rows, max(_LEAST_DRAWN, self.max_ram_bytes // (_BYTES_OF_A_SCORE * columns)))


def sampled(rows: Numbers, most: int) -> Numbers:
    """Return at most so many of some rows, drawn at random, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def require_batch(
    X: ArrayLike, rows: ArrayLike, count: int, width: int | None = None
) -> tuple[NDArray[np.float32], Numbers]:
    """Return a batch of a stream as arrays, refusing what does not fit or is not finite."""
    features, numbers = np.asarray(X, dtype=np.float32), np.asarray(rows)
    if features.ndim != 2 or numbers.shape != features.shape[:1]:
        raise HeadError(
            f"expected batches of features (b, d) and row numbers (b,), received shapes "
            f"{features.shape} and {numbers.shape}: yield pairs (X, rows)"
        )
    if width is not None and features.shape[1] != width:
        raise HeadError(
            f"expected {width} features in every batch, received {features.shape[1]}: "
            "stream one block"
        )
    if numbers.size and (
        numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= count
    ):
        raise HeadError(
            f"expected row numbers from 0 to {count - 1}, one for each label, received "
            f"{numbers.min()} to {numbers.max()} of type {numbers.dtype}: number the rows as the "
            "labels are"
        )
    if not np.isfinite(features).all():
        bad = numbers[~np.isfinite(features).all(axis=1)]
        raise HeadError(
            f"features must be finite, received NaN or inf in row {bad[0]}: leave such rows out "
            "or extract them again"
        )
    return features, numbers.astype(np.intp, copy=False)
