"""Batches for training: of one size, in an order drawn for every epoch, from memory or a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.training import Rows

BatchSource: TypeAlias = Callable[[Any], Iterable[tuple[NDArray[Any], NDArray[np.intp]]]]
"""Gives, for a seed, one pass over the data: pairs of features (b, d) and their row numbers (b,).

Every row comes once a pass, in an order that the seed (an int) draws; batches may be of any size.
`fit_head_streamed` also asks for a pass in any order, the cheapest, by a seed of None.
"""


class Batches(Protocol):
    """What heads train on."""

    rows: int
    width: int
    batch: int

    def epoch(self) -> Iterator[Rows]:
        """Yield every row once, ``batch`` at a time; the last batch is filled with the first."""


class MemoryBatches:
    """Batches of a matrix in memory; no more than a batch of it is copied."""

    def __init__(
        self,
        data: Rows,
        chosen: NDArray[np.intp],
        batch_size: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self._data, self._chosen = data, chosen
        self._generator = np.random.default_rng(seed)
        self.rows, self.width = len(chosen), data.X.shape[1]
        self.batch = min(batch_size, self.rows)

    def epoch(self) -> Iterator[Rows]:
        """Yield every row once; see `Batches`."""
        steps = -(-self.rows // self.batch)
        # One shape of batch, one trace: the last is filled from the head of the order.
        order = np.resize(self._generator.permutation(self.rows), (steps, self.batch))
        for places in order:
            rows = self._chosen[places]
            yield Rows(self._data.X[rows], self._data.targets[rows], self._data.weights[rows])


class StreamedBatches:
    """Batches of a stream, of which two batches and one of the stream's own are held at a time."""

    def __init__(
        self,
        source: BatchSource,
        targets: NDArray[Any],
        weights: NDArray[np.float32],
        chosen: NDArray[np.intp],
        *,
        width: int,
        batch_size: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self._source, self._targets, self._weights = source, targets, weights
        self._chosen = np.zeros(len(targets), dtype=bool)
        self._chosen[chosen] = True
        self._generator = np.random.default_rng(seed)
        self.rows, self.width = len(chosen), width
        self.batch = min(batch_size, self.rows)

    def epoch(self) -> Iterator[Rows]:
        """Yield every row once; see `Batches`."""
        seen = 0
        first: tuple[NDArray[np.float32], NDArray[np.intp]] | None = None
        X = np.empty((self.batch, self.width), dtype=np.float32)
        rows = np.empty(self.batch, dtype=np.intp)
        filled = 0
        for part, numbers in self._source(int(self._generator.integers(2**31))):
            part, numbers = require_batch(part, numbers, len(self._targets), self.width)
            places = np.flatnonzero(self._chosen[numbers])
            seen += len(places)
            while len(places):
                taken, places = places[: self.batch - filled], places[self.batch - filled :]
                X[filled : filled + len(taken)] = part[taken]
                rows[filled : filled + len(taken)] = numbers[taken]
                filled += len(taken)
                if filled == self.batch:
                    if first is None:
                        first = X.copy(), rows.copy()
                    yield self._rows(X, rows)
                    filled = 0
        if seen != self.rows:
            raise HeadError(
                f"expected a pass over all {self.rows} rows to train on, received {seen}: give "
                "every row once a pass"
            )
        if filled and first is not None:
            X[filled:], rows[filled:] = (array[: self.batch - filled] for array in first)
            yield self._rows(X, rows)

    def _rows(self, X: NDArray[np.float32], rows: NDArray[np.intp]) -> Rows:
        # A copy: a backend may still read one batch while the next is filled.
        return Rows(X.copy(), self._targets[rows], self._weights[rows])


def require_batch(
    X: Any, rows: Any, count: int, width: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Check one batch of a stream and give it as arrays."""
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
