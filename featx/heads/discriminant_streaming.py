"""Linear discriminant analysis from a stream of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.discriminant import ShrinkageLDA, class_shares, covariance_groups, row_shares
from featx.heads.ridge_streaming import require_square
from featx.heads.rows import BatchSource
from featx.heads.scatter import class_sums

_COPIES = 4
_PENDING_ROWS = 512


def fit_lda_streamed(
    head: ShrinkageLDA, source: BatchSource, y: Any, *, max_ram_bytes: int
) -> ShrinkageLDA:
    """Fit `ShrinkageLDA` in one pass for means and spreads, and more for covariances."""
    head._validate_params()
    head.classes_, codes = np.unique(y, return_inverse=True)
    counts = np.bincount(codes)
    width = require_square(source, max_ram_bytes, _COPIES)
    means, squares = _moments(source, codes, counts, width)
    shares = class_shares(head.class_weight, counts, head.classes_)
    groups = covariance_groups(counts)
    of_row = row_shares(counts, shares)
    covariance = np.zeros((width, width))
    one = 8 * width**2 + 4 * width * 2 * _PENDING_ROWS
    at_once = max(1, (max_ram_bytes // 2 - 8 * width**2) // one)
    for start in range(0, len(groups), at_once):
        some = groups[start : start + at_once]
        spreads = [_spread(group, counts, squares, head.shrinkage) for group in some]
        parts = _products(source, codes, some, means, spreads)
        for group, spread, part in zip(some, spreads, parts, strict=True):
            weight = counts[group].sum() * of_row[group[0]]
            part.shrink(head.shrinkage)
            part.gram *= weight * spread
            part.gram *= spread[:, None]
            covariance += part.gram
    head.n_features_in_ = width
    head.solve(means, covariance if covariance.any() else np.eye(width), shares, np.float32)
    return head


class _Part:
    """Sum of the outer products of the deviations of some classes, and of their lengths ** 4."""

    def __init__(self, width: int) -> None:
        self.gram = np.zeros((width, width))
        self.fourth, self.rows = 0.0, 0
        self._pending: list[NDArray[np.float32]] = []
        self._waiting = 0

    def add(self, deviations: NDArray[np.float32]) -> None:
        """Take rows; few are put together, since a product costs a whole matrix."""
        self.rows += len(deviations)
        self._pending.append(deviations)
        self._waiting += len(deviations)
        if self._waiting >= _PENDING_ROWS:
            self.flush()

    def flush(self) -> None:
        """Multiply what is waiting."""
        if self._pending:
            rows = np.concatenate(self._pending)
            self.gram += rows.T @ rows
            lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            self.fourth += float(lengths @ lengths)
            self._pending, self._waiting = [], 0

    def shrink(self, shrinkage: Any) -> None:
        """Turn sums into the shrunk covariance, in place.

        Notes
        -----
        Ledoit, Wolf (2004), as scikit-learn's ``ledoit_wolf(assume_centered=True)`` has it.
        """
        width = len(self.gram)
        self.gram /= max(self.rows, 1)
        diagonal = self.gram.flat[:: width + 1]
        level = float(np.sum(diagonal)) / width
        share = shrinkage
        if shrinkage == "auto":
            norm = float(np.einsum("ij,ij->", self.gram, self.gram))
            noise = (self.fourth / max(self.rows, 1) - norm) / (width * max(self.rows, 1))
            distance = norm / width - level**2
            noise = min(noise, distance)
            share = noise / distance if width > 1 and noise > 0 else 0.0
        self.gram *= 1 - float(share)
        self.gram.flat[:: width + 1] += float(share) * level


def _moments(
    source: BatchSource, codes: NDArray[np.intp], counts: NDArray[np.intp], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the mean (k, d) of each class, and its sum of squared deviations (k, d)."""
    sums, squares = np.zeros((2, len(counts), width))
    shift: NDArray[Any] | None = None
    for X, rows in source(None):
        if shift is None:
            shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        near = X - shift
        sums += class_sums(near, codes[rows], len(counts))
        near *= near
        squares += class_sums(near, codes[rows], len(counts))
    assert shift is not None
    centres = sums / counts[:, None]
    return centres + shift, np.maximum(squares - counts[:, None] * centres**2, 0)


def _spread(
    group: NDArray[np.intp], counts: NDArray[np.intp], squares: NDArray[np.float64], shrinkage: Any
) -> NDArray[np.float64]:
    """Give what the deviations of a group are divided by before they are shrunk."""
    if shrinkage != "auto":
        return np.ones(squares.shape[1])
    spread: NDArray[np.float64] = np.sqrt(squares[group].sum(axis=0) / counts[group].sum())
    # What rounding leaves of a column that does not vary is no spread.
    spread[spread <= 1e-6 * spread.max(initial=0.0)] = 1.0
    return spread


def _products(
    source: BatchSource,
    codes: NDArray[np.intp],
    groups: Sequence[NDArray[np.intp]],
    means: NDArray[np.float64],
    spreads: Sequence[NDArray[np.float64]],
) -> list[_Part]:
    parts = [_Part(means.shape[1]) for _ in groups]
    of_class = np.full(len(means), -1)
    for number, group in enumerate(groups):
        of_class[group] = number
    centres = means.astype(np.float32)
    scales = [(1 / spread).astype(np.float32) for spread in spreads]
    for X, rows in source(None):
        own = codes[rows]
        where = of_class[own]
        order = np.argsort(where, kind="stable")
        ends = np.searchsorted(where[order], np.arange(len(groups) + 1))
        for number, part in enumerate(parts):
            places = order[ends[number] : ends[number + 1]]
            if len(places):
                part.add((X[places] - centres[own[places]]) * scales[number])
    for part in parts:
        part.flush()
    return parts
