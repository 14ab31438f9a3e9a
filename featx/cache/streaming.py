"""Rows in batches, shuffled or not, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FeaturesError

_CHUNKS_A_BUFFER = 16


def stream_batches(
    read: Callable[[NDArray[np.intp]], NDArray[Any]],
    order: NDArray[np.intp],
    row_bytes: int,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    max_ram_bytes: int,
) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
    """Yield every row once, in batches.

    Rows are read in chunks of neighbours. To shuffle, chunks are drawn in random order into a
    buffer of half the budget, whose rows are then shuffled: random enough for gradient descent,
    and read at the speed of the disk.

    Parameters
    ----------
    read : callable
        Returns the features of row numbers, shape (m, d).
    order : ndarray of shape (n,)
        Row numbers in the order in which they lie on the disk.
    row_bytes : int
        Size of one row.
    batch_size : int
        Number of rows in a batch; the last one may be smaller.
    shuffle : bool
        Whether to shuffle; else rows come in the order of their numbers.
    seed : int
        The same seed gives the same order.
    max_ram_bytes : int
        Bound on what is held at any time.

    Yields
    ------
    X : ndarray of shape (b, d)
        Features.
    rows : ndarray of shape (b,)
        Their row numbers.

    Raises
    ------
    FeaturesError
        If not even one batch fits into the budget.
    """
    if batch_size < 1:
        raise FeaturesError(f"expected a positive batch_size, received {batch_size}")
    if 2 * batch_size * row_bytes > max_ram_bytes:
        raise FeaturesError(
            f"two batches of {batch_size} rows need {2 * batch_size * row_bytes:,} bytes, more "
            f"than max_ram_bytes={max_ram_bytes:,}: take smaller batches or more memory"
        )
    if not shuffle:
        for start in range(0, len(order), batch_size):
            rows = np.arange(start, min(start + batch_size, len(order)))
            yield read(rows), rows
        return
    generator = np.random.default_rng(seed)
    buffer_rows = max(batch_size, max_ram_bytes // (2 * row_bytes) // batch_size * batch_size)
    chunk_rows = max(1, buffer_rows // _CHUNKS_A_BUFFER)
    starts = np.arange(0, len(order), chunk_rows)
    generator.shuffle(starts)
    drawn = np.concatenate([order[start : start + chunk_rows] for start in starts] or [order])
    for start in range(0, len(drawn), buffer_rows):
        rows = np.sort(drawn[start : start + buffer_rows])
        X = read(rows)
        mixed = generator.permutation(len(rows))
        for first in range(0, len(rows), batch_size):
            chosen = mixed[first : first + batch_size]
            yield X[chosen], rows[chosen]
