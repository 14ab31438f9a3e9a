"""A fitted head as a few steps of arithmetic, which every format knows how to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """``x * factor + offset``, each of shape (d,)."""

    factor: Floats
    offset: Floats

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        return X * self.factor.astype(X.dtype) + self.offset.astype(X.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """``x @ kernel + bias``, of shapes (d, k) and (k,)."""

    kernel: Floats
    bias: Floats

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k)."""
        return X @ self.kernel.astype(X.dtype) + self.bias.astype(X.dtype)


@dataclass(frozen=True, slots=True)
class UnitLength:
    """Rows divided by their Euclidean length; rows of zeros stay."""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
        lengths[lengths == 0] = 1
        unit: Floats = X / lengths[:, None]
        return unit


@dataclass(frozen=True, slots=True)
class Rectify:
    """``max(x, 0)``."""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, d)."""
        return np.maximum(X, 0)


@dataclass(frozen=True, slots=True)
class Softmax:
    """Probabilities of classes that exclude one another."""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k) that sum to 1."""
        powers: Floats = np.exp(X - X.max(axis=1, keepdims=True))
        shares: Floats = powers / powers.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """Probabilities of labels that do not exclude one another."""

    def apply(self, X: Floats) -> Floats:
        """Return rows of shape (n, k), each number from 0 to 1."""
        probabilities: Floats = np.exp(-np.logaddexp(0, -X))
        return probabilities


Step = Scale | Linear | UnitLength | Rectify | Softmax | Sigmoid


def apply_steps(X: Floats, steps: Iterable[Step]) -> Floats:
    """Run rows through steps, in the number type of the rows.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    steps : iterable of Step

    Returns
    -------
    ndarray of shape (n, k)

    Examples
    --------
    >>> apply_steps(np.array([[3.0, 4.0]]), [UnitLength(), Scale(np.full(2, 10), np.zeros(2))])
    array([[6., 8.]])
    """
    for step in steps:
        X = step.apply(X)
    return X


def joined(steps: Sequence[Step]) -> list[Step]:
    """Make one step of neighbours that are affine maps, in double precision.

    A scaler, principal components and a linear head become one matrix: less to compute, less to
    store, and one rounding. A scaler before anything else stays.

    Examples
    --------
    >>> two = Scale(np.full(3, 2.0), np.ones(3))
    >>> (step,) = joined([two, Linear(np.eye(3), np.zeros(3)), two])
    >>> step.kernel.diagonal().tolist(), step.bias.tolist()
    ([4.0, 4.0, 4.0], [3.0, 3.0, 3.0])
    """
    out: list[Step] = []
    for step in steps:
        last = out[-1] if out else None
        if isinstance(step, Scale | Linear) and isinstance(last, Scale | Linear):
            out[-1] = _composed(last, step)
        else:
            out.append(step)
    return out


def _composed(first: Scale | Linear, second: Scale | Linear) -> Scale | Linear:
    a, b = _doubles(first), _doubles(second)
    if isinstance(second, Scale):
        moved = a[1] * b[0] + b[1]
        kind = Scale if isinstance(first, Scale) else Linear
        return kind(a[0] * b[0], moved)
    kernel = a[0][:, None] * b[0] if isinstance(first, Scale) else a[0] @ b[0]
    return Linear(kernel, a[1] @ b[0] + b[1])


def _doubles(step: Scale | Linear) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    parts = (step.factor, step.offset) if isinstance(step, Scale) else (step.kernel, step.bias)
    return parts[0].astype(np.float64), parts[1].astype(np.float64)
