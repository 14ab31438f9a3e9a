"""Sums over training rows, fold by fold, each row being read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.rows import BatchSource, Fold

_BLOCK_BYTES = 16 * 2**20
_LEAST_LEFT = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """What a ``StandardScaler`` learns from training rows.

    Parameters
    ----------
    mean : ndarray of shape (d,), float64
    deviation : ndarray of shape (d,), float64
        1 where a column is constant.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def apply(self, X: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Standardise rows, in their own precision."""
        scaled: NDArray[Any] = X - self.mean.astype(X.dtype)
        scaled /= self.deviation.astype(X.dtype)
        return scaled


@dataclass(slots=True, eq=False)
class Scatter:
    """Sums over rows, of features less a shift that keeps them near zero.

    Parameters
    ----------
    shift : ndarray of shape (d,), float64
        What was subtracted from every row.
    counts : ndarray of shape (k,), float64
        Rows of each class.
    sums : ndarray of shape (k, d), float64
        Sums of the rows of each class.
    squares : ndarray of shape (d,), float64
        Sums of squares.
    gram : ndarray of shape (d, d), or None
        Sum of the rows' outer products, if it was asked for.
    """

    shift: NDArray[np.float64]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    gram: NDArray[np.floating[Any]] | None

    def __sub__(self, other: Scatter) -> Scatter:
        """Leave out the rows of another one."""
        gram = None if self.gram is None or other.gram is None else self.gram - other.gram
        return Scatter(
            self.shift,
            self.counts - other.counts,
            self.sums - other.sums,
            self.squares - other.squares,
            gram,
        )

    @property
    def rows(self) -> float:
        """How many rows were summed."""
        return float(self.counts.sum())

    def scale(self) -> Scale:
        """Mean and deviation of each column."""
        mean = self.sums.sum(axis=0) / self.rows
        variance = self.squares / self.rows - mean**2
        # What rounding leaves of a constant column, sums of others' rows having been taken off.
        rounding = 10 * self.rows**1.5 * np.finfo(np.float64).eps
        constant = variance <= rounding * (mean**2 + (np.finfo(np.float64).eps * self.shift) ** 2)
        return Scale(self.shift + mean, np.sqrt(np.where(constant, 1.0, variance)))

    def means(self, scale: Scale) -> NDArray[np.float64]:
        """Class means in standardised units."""
        centred = self.sums / self.counts[:, None] - (scale.mean - self.shift)
        means: NDArray[np.float64] = centred / scale.deviation
        return means


def row_blocks(rows: NDArray[np.intp], width: int, itemsize: int = 4) -> Iterator[NDArray[np.intp]]:
    """Cut row numbers into pieces of at most 16 MiB of features."""
    step = max(1, _BLOCK_BYTES // (width * itemsize))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def fold_scatters(
    X: NDArray[Any], y: NDArray[np.intp], folds: Sequence[Fold], *, gram: bool
) -> Iterator[Scatter]:
    """Give the sums over the training rows of each fold.

    Notes
    -----
    Where the folds divide the rows among them, the sums over all rows less those over the testing
    rows are the sums over the training rows: every row is multiplied once instead of once less
    than there are folds.
    """
    classes = int(y.max()) + 1
    shift = X.mean(axis=0, dtype=np.float64)
    total = None
    if _divide(folds, len(X)):
        total = _summed(X, y, np.arange(len(X)), shift, classes, gram)
    for train, test in folds:
        if total is None:
            found = _summed(X, y, train, shift, classes, gram)
            energy = found.squares
        else:
            found = total - _summed(X, y, test, shift, classes, gram)
            energy = total.squares
        if _is_rounding(found, energy):
            own = X[train].mean(axis=0, dtype=np.float64)
            found = _summed(X, y, train, own, classes, gram)
        yield found


def fold_scales(X: NDArray[Any], folds: Sequence[Fold]) -> Iterator[Scale]:
    """Give mean and deviation of the training rows of each fold."""
    one = np.zeros(len(X), dtype=np.intp)
    for scatter in fold_scatters(X, one, folds, gram=False):
        yield scatter.scale()


def class_sums(rows: NDArray[Any], codes: NDArray[np.intp], classes: int) -> NDArray[np.float64]:
    """Sum the rows of each class in double precision."""
    sums = np.zeros((classes, rows.shape[1]))
    counts = np.bincount(codes, minlength=classes)
    present = np.flatnonzero(counts)
    sorted_rows = rows if len(present) == 1 else rows[np.argsort(codes, kind="stable")]
    # A sum a run is three times as fast as one np.add.reduceat.
    for code, stop in zip(present, np.cumsum(counts[present]), strict=True):
        sums[code] = sorted_rows[stop - counts[code] : stop].sum(axis=0, dtype=np.float64)
    return sums


def streamed_scatter(
    source: BatchSource,
    codes: NDArray[np.intp],
    classes: int,
    *,
    gram: bool,
    weights: NDArray[np.float64] | None = None,
) -> Scatter:
    """Give the sums over all rows of a stream, from one pass over it."""
    found: Scatter | None = None
    for X, rows in source(None):
        if found is None:
            shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
            width = X.shape[1]
            found = Scatter(
                shift.astype(np.float64),
                np.bincount(codes, minlength=classes).astype(np.float64),
                np.zeros((classes, width)),
                np.zeros(width),
                np.zeros((width, width)) if gram else None,
            )
        own = codes[rows]
        near = X - shift
        found.sums += class_sums(near, own, classes)
        found.squares += np.einsum("ij,ij->j", near, near, dtype=np.float64)
        if found.gram is not None:
            if weights is not None:
                near *= np.sqrt(weights[own])[:, None].astype(near.dtype)
            found.gram += near.T @ near
    if found is None:
        raise HeadError("the stream gave no batch: expected pairs (X, rows)")
    return found


def _is_rounding(scatter: Scatter, energy: NDArray[np.float64]) -> bool:
    """Whether what was taken off a column, outliers or another mean, dwarfs what is left."""
    scale = scatter.scale()
    varies = scale.deviation != 1
    left = scatter.rows * scale.deviation**2
    return bool((varies & (left < _LEAST_LEFT * energy)).any())


def _divide(folds: Sequence[Fold], rows: int) -> bool:
    if len(folds) < 2 or any(len(train) + len(test) != rows for train, test in folds):
        return False
    tested = np.zeros(rows, dtype=np.intp)
    for train, test in folds:
        apart = np.zeros(rows, dtype=bool)
        apart[train] = True
        if apart[test].any():
            return False
        np.add.at(tested, test, 1)
    return bool((tested == 1).all())


def _summed(
    X: NDArray[Any],
    y: NDArray[np.intp],
    rows: NDArray[np.intp],
    shift: NDArray[np.float64],
    classes: int,
    gram: bool,
) -> Scatter:
    width = X.shape[1]
    sums, squares = np.zeros((classes, width)), np.zeros(width)
    outer = np.zeros((width, width), X.dtype) if gram else None
    for block in row_blocks(rows, width, X.itemsize):
        near = X[block] - shift.astype(X.dtype)
        sums += class_sums(near, y[block], classes)
        squares += np.einsum("ij,ij->j", near, near, dtype=np.float64)
        if outer is not None:
            outer += near.T @ near
    counts = np.bincount(y[rows], minlength=classes).astype(np.float64)
    # The shift was rounded to the features' precision before it was subtracted.
    return Scatter(shift.astype(X.dtype).astype(np.float64), counts, sums, squares, outer)
