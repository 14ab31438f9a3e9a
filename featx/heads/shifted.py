"""One symmetric matrix plus many multiples of the identity: systems solved from one reduction."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.linalg import LinAlgError, eigh_tridiagonal, lstsq, solve
from scipy.linalg.lapack import get_lapack_funcs
from threadpoolctl import threadpool_limits

from featx.heads.rows import Doubles, Floats

_BLOCK = 64
_COLUMNS = 1024


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
        with _one_thread():
            packed, self._diagonal, self._beside, self._tau, info = sytrd(
                matrix, lower=1, lwork=_BLOCK * self._width
            )
        if info:
            raise ValueError(f"?sytrd refused argument {-info}")
        self._reflectors = np.asfortranarray(packed[1:, :-1])

    def solve(self, rhs: Floats, shifts: Doubles) -> Floats:
        """Solve for each shift."""
        rotated = self.rotate(rhs)
        width, columns = rotated.shape
        solutions = np.empty((len(shifts), width, columns), rotated.dtype)
        step = max(1, _COLUMNS // columns)
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
            with _one_thread():
                # Q leaves the first coordinate alone.
                rotated[1:] = self._ormqr(
                    b"L",
                    transposed,
                    self._reflectors,
                    self._tau,
                    rotated[1:],
                    lwork=_BLOCK * max(rotated.shape),
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


def _one_thread() -> threadpool_limits:
    """Keep LAPACK to one thread."""
    return threadpool_limits(1, "blas")
