"""Sums over rows by what is learnt of them, and the linear systems that come of these sums.

Batches add up, and a fold is a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.linalg import LinAlgError, eigh_tridiagonal, lstsq, solve
from scipy.linalg.lapack import get_lapack_funcs

from featx.exceptions import HeadError
from featx.heads.rows import Batch, Doubles, Floats, Fold, Numbers, Rows
from featx.heads.steps import Scale
from featx.heads.targets import Targets
from featx.memory import shown_bytes
from featx.threads import blas_threads

_BLOCK_BYTES = 16 * 2**20
_LEAST_LEFT = 1e-4
# Of LAPACK's reduction, and columns that are rotated together.
_REDUCED_AT_ONCE, _COLUMNS_AT_ONCE = 64, 1024
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
        shift = None
        if rows.matrix is not None and targets.kind != "values":
            shift = rows.matrix.mean(axis=0, dtype=np.float64)
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

    @classmethod
    def of_groups(
        cls, batches: Iterable[Batch], targets: Targets, group_of: Numbers, *, gram: bool
    ) -> list[Moments]:
        """Return the sums over the rows of each group, by their groups (n,), from one pass."""
        totals: list[Moments] = []
        for X, numbers in batches:
            if not totals:
                shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
                count = int(group_of.max()) + 1
                totals = [_empty(shift, targets.columns, gram=gram) for _ in range(count)]
            for group, total in enumerate(totals):
                inside = np.flatnonzero(group_of[numbers] == group)
                if len(inside):
                    totals[group] = total._with(X[inside], numbers[inside], targets)
        return totals

    def _with(self, X: Floats, numbers: Numbers, targets: Targets) -> Moments:
        """Return the sums with those of a batch; arrays are added to in place."""
        near = X - self.shift.astype(X.dtype)
        if targets.kind == "values":
            return self._with_values(near, numbers, targets)
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
            sums = values.astype(near.dtype).T @ weighted
            self.whole[:] += weighted.sum(axis=0, dtype=np.float64)
        self.counts[:] += counts
        self.sums[:] += sums
        self.squares[:] += np.einsum("ij,ij->j", weighted, near, dtype=np.float64)
        if self.gram is not None:
            if weights is not None:
                near *= np.sqrt(weights)[:, None].astype(near.dtype)
            self.gram[:] += near.T @ near
        return replace(self, weight=self.weight + weight)

    def _with_values(self, near: Floats, numbers: Numbers, targets: Targets) -> Moments:
        """Return the sums with those of a batch that values are learnt of, in two products."""
        weights = targets.counted(numbers)
        counted = np.ones(len(near)) if weights is None else weights
        columns = np.column_stack([counted, targets.values[numbers] * counted[:, None]])
        self.counts[:] += columns[:, 1:].sum(axis=0)
        products = columns.astype(near.dtype).T @ near
        self.whole[:] += products[0]
        self.sums[:] += products[1:]
        if self.gram is None:
            self.squares[:] += np.einsum("i,ij,ij->j", counted, near, near, dtype=np.float64)
        else:
            if weights is not None:
                near *= np.sqrt(weights)[:, None].astype(near.dtype)
            gram = near.T @ near
            self.gram[:] += gram
            self.squares[:] += gram.diagonal()
        return replace(self, weight=self.weight + float(counted.sum()))

    def __sub__(self, other: Moments) -> Moments:
        """Leave out the rows of another one, of the same shift."""
        return self._combined(other, np.subtract)

    def __add__(self, other: Moments) -> Moments:
        """Take in the rows of another one, of the same shift."""
        return self._combined(other, np.add)

    def _combined(self, other: Moments, combine: np.ufunc) -> Moments:
        gram = None if self.gram is None or other.gram is None else combine(self.gram, other.gram)
        return replace(
            self,
            weight=float(combine(self.weight, other.weight)),
            counts=combine(self.counts, other.counts),
            whole=combine(self.whole, other.whole),
            sums=combine(self.sums, other.sums),
            squares=combine(self.squares, other.squares),
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
    together = Targets("classes", np.zeros(1), np.zeros(len(X), np.intp))
    for moments in fold_moments(X, together, folds, gram=False):
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


class ShiftedSystems:
    """Solves ``(A + shift * I) W = B`` for any number of shifts.

    Notes
    -----
    A = Q T Q' with T tridiagonal, so that A + s I = Q (T + s I) Q'. A shift then costs O(d) a
    column, and the rotations by Q are two products for all shifts together. The eigenvectors that
    would make T diagonal are not needed for this and cost several times what T costs (at 1,280
    columns and one thread 0.1 s against 0.6 s in float32). Golub, Van Loan: "Matrix
    Computations", 4th edition, section 8.3.

    Where T + s I is not positive definite to working precision, eigenvalues of T below zero are
    taken for the rounding that they are. Without a shift above rounding, directions without
    variance then get no weight: the answer of least norm.
    """

    def __init__(self, matrix: Floats) -> None:
        self._width = len(matrix)
        names = ("sytrd", "ormqr", "pttrf", "pttrs")
        sytrd, self._ormqr, self._pttrf, self._pttrs = get_lapack_funcs(names, (matrix,))
        with blas_threads(1):
            packed, self._diagonal, self._beside, self._tau, info = sytrd(
                matrix, lower=1, lwork=_REDUCED_AT_ONCE * self._width
            )
        if info:
            raise ValueError(f"?sytrd refused argument {-info}")
        self._reflectors = np.asfortranarray(packed[1:, :-1])

    def solve(self, rhs: Floats, shifts: Doubles) -> Floats:
        """Solve for each shift."""
        rotated = self.rotate(rhs)
        width, columns = rotated.shape
        solutions = np.empty((len(shifts), width, columns), rotated.dtype)
        step = max(1, _COLUMNS_AT_ONCE // columns)
        for start in range(0, len(shifts), step):
            batch = [self.solve_rotated(rotated, float(s)) for s in shifts[start : start + step]]
            back = self.unrotate(np.hstack(batch))
            solutions[start : start + step] = back.reshape(width, len(batch), columns).swapaxes(
                0, 1
            )
        return solutions

    def rotate(self, columns: Floats) -> Floats:
        """Give Q' times these columns, in which the systems are tridiagonal."""
        return self._rotated(columns, b"T")

    def unrotate(self, rotated: Floats) -> Floats:
        """Undo `rotate`."""
        return self._rotated(rotated, b"N")

    def solve_rotated(self, rotated: Floats, shift: float) -> Floats:
        """Solve ``(T + shift * I) w = b`` for columns that `rotate` gave."""
        if shift > 0:
            shifted = self._diagonal + self._diagonal.dtype.type(shift)
            # LAPACK's wrapper wants room for one entry beside a single one.
            beside = self._beside if self._width > 1 else np.zeros(1, shifted.dtype)
            pivots, ratios, info = self._pttrf(shifted, beside)
            if not info:
                return np.asarray(self._pttrs(pivots, ratios, rotated)[0])
        values, vectors = self._spectrum
        raised = np.maximum(values, 0) + shift
        least = self._rounding if shift < self._rounding else 0.0
        inverse = np.divide(1, raised, out=np.zeros_like(raised), where=raised > least)
        return np.asarray(vectors @ (inverse[:, None] * (vectors.T @ rotated)), rotated.dtype)

    @cached_property
    def _spectrum(self) -> tuple[Doubles, Doubles]:
        values, vectors = eigh_tridiagonal(
            self._diagonal.astype(np.float64), self._beside.astype(np.float64)
        )
        return values, vectors

    @property
    def _rounding(self) -> float:
        largest = np.abs(self._diagonal).max(initial=0.0)
        return float(np.finfo(self._diagonal.dtype).eps * largest * 4 * self._width**0.5)

    def _rotated(self, columns: Floats, transposed: bytes) -> Floats:
        rotated = np.array(columns, dtype=self._diagonal.dtype, order="F")
        if self._width > 1:
            with blas_threads(1):
                # Q leaves the first coordinate alone.
                rotated[1:] = self._ormqr(
                    b"L",
                    transposed,
                    self._reflectors,
                    self._tau,
                    rotated[1:],
                    lwork=_REDUCED_AT_ONCE * max(rotated.shape),
                )[0]
        return rotated


def solve_shifted(matrix: Doubles, rhs: Doubles, shifts: ArrayLike, dtype: DTypeLike) -> Floats:
    """Return ``(A + shift * I)^-1 B`` for each shift: many in this precision, one in double."""
    values = np.asarray(shifts, np.float64)
    if len(values) > 1:
        return ShiftedSystems(matrix.astype(dtype)).solve(rhs.astype(dtype), values)
    raised = matrix + values * np.eye(len(matrix))
    try:
        return np.asarray(solve(raised, rhs, assume_a="pos", check_finite=False))[None]
    except LinAlgError:
        return np.asarray(lstsq(raised, rhs)[0])[None]
