"""Features of a dataset as batches, for training within a bound of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features

_MOST_ROWS = 16384
_LEAST_ROWS = 16
_BATCH_SHARE = 32
_BUFFER_SHARE = 4


class FeatureStream:
    """Passes over some rows of a block and of its views, each row of each view once."""

    def __init__(
        self,
        features: Features,
        place: dict[str, Any],
        rows: NDArray[np.intp],
        views: list[int],
        max_ram_bytes: int,
    ) -> None:
        self._features, self._place, self._rows = features, place, rows
        self._views: list[int | None] = [None, *views]
        row_bytes = 4 * features.width(**place)
        self.batch_rows = int(
            np.clip(max_ram_bytes // _BATCH_SHARE // row_bytes, _LEAST_ROWS, _MOST_ROWS)
        )
        self._buffer = max(max_ram_bytes // _BUFFER_SHARE, 2 * row_bytes * self.batch_rows)

    def __call__(self, seed: int | None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
        """Give one pass, in an order that the seed draws or, for None, as it is read fastest."""
        order = np.arange(len(self._views))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        for number in order:
            batches = self._features.batches(
                **self._place,
                view=self._views[number],
                rows=self._rows,
                batch_size=self.batch_rows,
                shuffle=seed is not None,
                seed=seed or 0,
                max_ram_bytes=self._buffer,
            )
            for X, rows in batches:
                places = np.searchsorted(self._rows, rows) + number * len(self._rows)
                yield X.astype(np.float32, copy=False), places

    def together(
        self, views: int
    ) -> Iterator[tuple[list[NDArray[np.floating[Any]]], NDArray[np.intp]]]:
        """Give rows a batch at a time: their features, those of the first views, their places."""
        for start in range(0, len(self._rows), self.batch_rows):
            rows = self._rows[start : start + self.batch_rows]
            parts = [
                self._features.take(rows, **self._place, view=view)
                for view in self._views[: 1 + views]
            ]
            yield parts, np.arange(start, start + len(rows))


def block_bytes(features: Features, place: dict[str, Any]) -> int:
    """Return the size of a block and of its views in memory, as float32."""
    width = features.width(**place)
    return 4 * width * len(features) * (1 + len(features.views(**place)))
