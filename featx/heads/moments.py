"""Sums over rows by what is learnt of them: batches add up, and a fold is a difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from featx.exceptions import HeadError
from featx.heads.rows import Batch, Doubles, Floats, Fold, Numbers, Rows
from featx.heads.steps import Scale
from featx.heads.targets import Targets
from featx.memory import shown_bytes

_BLOCK_BYTES = 16 * 2**20
_LEAST_LEFT = 1e-4
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over rows, of features less a shift that keeps them near zero, in double precision."""

    shift: Doubles  # (d,), what was subtracted from every row
    weight: float  # of all rows together
    counts: Doubles  # (k,), how much counts of each class, or has each label; sums of values
    whole: Doubles  # (d,), the sum of the rows
    sums: Doubles  # (k, d), of each class or label, or times the values of each column
    squares: Doubles  # (d,), sums of squares
    gram: Doubles | None  # (d, d), the sum of the rows' outer products, if it was asked for
    dtype: DTypeLike  # of the features

    @classmethod
    def of(cls, rows: Rows, targets: Targets, *, gram: bool) -> Moments:
        """Return the sums over rows, from one pass over them."""
        shift = None if rows.matrix is None else rows.matrix.mean(axis=0, dtype=np.float64)
        return cls.over(rows.batches(), targets, gram=gram, shift=shift)

    @classmethod
    def over(
        cls, batches: Iterable[Batch], targets: Targets, *, gram: bool, shift: Doubles | None = None
    ) -> Moments:
        """Return the sums over batches, less the mean of the first where no shift is given."""
        total: Moments | None = None
        for X, numbers in batches:
            if total is None:
                near_mean = X.mean(axis=0, dtype=np.float64) if shift is None else shift
                total = _empty(near_mean.astype(X.dtype), targets.columns, gram=gram)
            total = total._with(X, numbers, targets)
        if total is None:
            raise HeadError("the stream gave no batch: expected pairs (X, rows)")
        return total

    def _with(self, X: Floats, numbers: Numbers, targets: Targets) -> Moments:
        """Return the sums with those of a batch; arrays are added to in place."""
        near = X - self.shift.astype(X.dtype)
        values, weights = targets.values[numbers], targets.counted(numbers)
        if targets.kind == "classes":
            codes = values.astype(np.intp)
            counts = np.bincount(codes, weights, minlength=targets.columns).astype(np.float64)
        else:
            by_row = values if weights is None else values * weights[:, None]
            counts = by_row.sum(axis=0, dtype=np.float64)
        weight = float(len(X) if weights is None else weights.sum())
        weighted = near if weights is None else near * weights[:, None].astype(near.dtype)
        if targets.kind == "classes":
            sums = class_sums(weighted, codes, targets.columns)
            self.whole[:] += sums.sum(axis=0)
        else:
            columns = values.astype(near.dtype if targets.kind == "labels" else np.float64)
            sums = columns.T @ weighted
            self.whole[:] += weighted.sum(axis=0, dtype=np.float64)
        self.counts[:] += counts
        self.sums[:] += sums
        self.squares[:] += np.einsum("ij,ij->j", weighted, near, dtype=np.float64)
        if self.gram is not None:
            if weights is not None:
                near *= np.sqrt(weights)[:, None].astype(near.dtype)
            self.gram[:] += near.T @ near
        return replace(self, weight=self.weight + weight)

    def __sub__(self, other: Moments) -> Moments:
        """Leave out the rows of another one."""
        gram = None if self.gram is None or other.gram is None else self.gram - other.gram
        return replace(
            self,
            weight=self.weight - other.weight,
            counts=self.counts - other.counts,
            whole=self.whole - other.whole,
            sums=self.sums - other.sums,
            squares=self.squares - other.squares,
            gram=gram,
        )

    def scale(self) -> Scale:
        """Return mean and deviation of each column as a ``StandardScaler`` has them."""
        mean = self.whole / self.weight
        variance = self.squares / self.weight - mean**2
        # What rounding leaves of a constant column, sums of others' rows having been taken off.
        rounding = 10 * self.weight**1.5 * _EPSILON
        constant = variance <= rounding * (mean**2 + (_EPSILON * self.shift) ** 2)
        return Scale(self.shift + mean, np.sqrt(np.where(constant, 1.0, variance)))

    def means(self) -> Doubles:
        """Return the mean of the rows of each class or label, shape (k, d)."""
        means: Doubles = self.sums / self.counts[:, None] + self.shift
        return means

    def standardised(self, scale: Scale) -> Moments:
        """Return the sums over the same rows behind a scale."""
        gram = None
        if self.gram is not None:
            gram = self.gram / scale.scale
            gram /= scale.scale[:, None]
        return replace(
            self,
            shift=(self.shift - scale.center) / scale.scale,
            whole=self.whole / scale.scale,
            sums=self.sums / scale.scale,
            squares=self.squares / scale.scale**2,
            gram=gram,
        )


def _empty(shift: Floats, columns: int, *, gram: bool) -> Moments:
    # The shift is rounded to the features' precision before it is subtracted.
    width = len(shift)
    return Moments(
        shift.astype(np.float64),
        0.0,
        np.zeros(columns),
        np.zeros(width),
        np.zeros((columns, width)),
        np.zeros(width),
        np.zeros((width, width)) if gram else None,
        shift.dtype,
    )


def fold_moments(
    X: Floats, targets: Targets, folds: Sequence[Fold], *, gram: bool
) -> Iterator[Moments]:
    """Yield the sums over the training rows of each fold.

    Notes
    -----
    Where the folds divide the rows among them, the sums over all rows less those over the testing
    rows are the sums over the training rows: every row is multiplied once instead of once less
    than there are folds.
    """

    def over(numbers: Numbers, shift: Doubles) -> Moments:
        return Moments.over(_blocks(X, numbers), targets, gram=gram, shift=shift)

    shift = X.mean(axis=0, dtype=np.float64)
    total = over(np.arange(len(X)), shift) if _divide(folds, len(X)) else None
    for train, test in folds:
        moments = over(train, shift) if total is None else total - over(test, shift)
        if _is_rounding(moments, moments if total is None else total):
            moments = over(train, X[train].mean(axis=0, dtype=np.float64))
        yield moments


def fold_scales(X: Floats, folds: Sequence[Fold]) -> Iterator[Scale]:
    """Yield mean and deviation of the training rows of each fold."""
    one = Targets("classes", np.zeros(1), np.zeros(len(X), np.intp))
    for moments in fold_moments(X, one, folds, gram=False):
        yield moments.scale()


def standardise(X: Floats, scale: Scale) -> Floats:
    """Return rows behind a scale, in their own precision, which is faster than `Scale.apply`."""
    scaled: Floats = X - scale.center.astype(X.dtype)
    scaled /= scale.scale.astype(X.dtype)
    return scaled


def class_sums(rows: Floats, codes: Numbers, classes: int) -> Doubles:
    """Return the sums of the rows of each class in double precision."""
    sums = np.zeros((classes, rows.shape[1]))
    counts = np.bincount(codes, minlength=classes)
    present = np.flatnonzero(counts)
    sorted_rows = rows if len(present) == 1 else rows[np.argsort(codes, kind="stable")]
    # A sum a run is three times as fast as one np.add.reduceat.
    for code, stop in zip(present, np.cumsum(counts[present]), strict=True):
        sums[code] = sorted_rows[stop - counts[code] : stop].sum(axis=0, dtype=np.float64)
    return sums


def require_square(rows: Rows, copies: int) -> None:
    """Refuse a bound that cannot hold matrices of the number of features squared."""
    needed = copies * 8 * rows.width**2
    if rows.max_ram_bytes is not None and needed > rows.max_ram_bytes:
        raise HeadError(
            f"this head sums products of {rows.width:,} features, for which it needs "
            f"{shown_bytes(needed)}, more than the {shown_bytes(rows.max_ram_bytes)} that it may "
            "have beside the batches: raise --max-ram (max_ram=...), or take nearest-mean, "
            "logistic or dense"
        )


def _blocks(X: Floats, numbers: Numbers) -> Iterator[Batch]:
    """Yield rows with their numbers in pieces of at most 16 MiB."""
    step = max(1, _BLOCK_BYTES // (X.shape[1] * X.itemsize))
    for start in range(0, len(numbers), step):
        block = numbers[start : start + step]
        yield X[block], block


def _is_rounding(moments: Moments, total: Moments) -> bool:
    """Tell whether what was taken off a column dwarfs what is left of it."""
    deviation = moments.scale().scale
    left = moments.weight * deviation**2
    return bool(((deviation != 1) & (left < _LEAST_LEFT * total.squares)).any())


def _divide(folds: Sequence[Fold], rows: int) -> bool:
    """Tell whether every row is tested in one fold and trained on in all others."""
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
