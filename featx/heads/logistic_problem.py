"""The objective of logistic regression over a stream of batches, and the descents on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.dense_batches import BatchSource
from featx.heads.lockstep import inner, minimise_in_lockstep
from featx.heads.logistic_targets import LabelTargets, Targets

# A step ends the descent when the objective is within this share of its tolerance of the minimum.
_GAP = 0.01
# Below this, sums of products in single precision are what ends it.
_SINGLE_TOL = 1e-5
_SINGLE_NOISE, _DOUBLE_NOISE = 1e-7, 1e-13
_LEAST_SPREAD = 0.1


class StreamedProblem:
    """The objective over the rows of a stream, and the descent on it."""

    def __init__(
        self,
        source: BatchSource,
        targets: Targets,
        mean: NDArray[np.float64],
        penalty: NDArray[np.float64],
        head: Any,
        *,
        scale: float = 1.0,
    ) -> None:
        self._source, self._targets = source, targets
        self._mean, self._penalty, self._intercept = mean, penalty, bool(head.fit_intercept)
        self._kind = np.float32 if head.tol >= _SINGLE_TOL * scale else np.float64
        # The labels whose descent goes on, which only become fewer.
        self._left: tuple[NDArray[np.intp], Targets] | None = None
        self.norm, self.converged = np.inf, False

    def value(
        self, W: NDArray[np.float64], which: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Judge W, the lines of the problems numbered ``which``, in one pass."""
        kind: Any = self._kind
        coef: NDArray[np.floating[Any]] = W[:, :-1].T.astype(kind)
        constant = W[:, -1]
        mean = self._mean.astype(np.float32)
        gradient = np.zeros_like(W)
        targets = self._some(which)
        totals = targets.totals
        penalty = self._penalty[which]
        losses, spread = np.zeros(len(totals)), np.zeros(len(W))
        for X, rows in self._source(None):
            near: NDArray[np.floating[Any]] = (X - mean).astype(kind, copy=False)
            found = targets.judge((near @ coef).astype(np.float64) + constant, rows)
            losses += found[0]
            spread += found[1]
            residual: NDArray[np.floating[Any]] = found[2].T.astype(kind)
            gradient[:, :-1] += residual @ near
            gradient[:, -1] += found[2].sum(axis=0)
        gradient /= totals[:, None]
        gradient[:, :-1] += penalty[:, None] * W[:, :-1]
        if not self._intercept:
            gradient[:, -1] = 0
        lengths = (W[:, :-1] ** 2).sum(axis=1).reshape(len(totals), -1).sum(axis=1)
        values: NDArray[np.float64] = losses / totals + 0.5 * penalty * lengths
        return values, gradient, spread / totals

    def _some(self, which: NDArray[np.intp]) -> Targets:
        if len(which) == len(self._targets.totals):
            return self._targets
        if self._left is None or self._left[0].size != which.size:
            assert isinstance(self._targets, LabelTargets)
            self._left = which, self._targets.take(which)
        return self._left[1]

    def descend(
        self,
        W: NDArray[np.float64],
        directions: NDArray[np.floating[Any]] | None,
        curvature: NDArray[np.float64],
        head: Any,
    ) -> tuple[NDArray[np.float64], int]:
        """Minimise every objective from W; return the minimum and the number of passes."""
        count = len(self._targets.totals)
        shape = count, len(W) // count, W.shape[1]
        norms = np.full(count, np.inf)
        # What is rare has hardly a row in a sample, which says little of it.
        least = _LEAST_SPREAD * self._targets.spread()
        frame: Frame | None = None
        if directions is not None:
            directions = directions.astype(self._kind, copy=False)

        def lines(which: NDArray[np.intp]) -> Any:
            return which if count > 1 else slice(None)

        def function(
            points: NDArray[np.float64], which: NDArray[np.intp]
        ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
            nonlocal frame
            mine = lines(which)
            flat = points.reshape(-1, shape[2])
            at = W if frame is None else W[mine] + frame.turned(flat, mine)
            values, gradient, spread = self.value(at, which)
            if frame is None:
                frame = Frame.of(np.maximum(spread, least), directions, curvature, self._penalty)
            scaled = frame.turned_back(gradient, mine).reshape(points.shape)
            given = np.abs(_given(gradient, self._mean)).reshape(len(which), -1)
            norms[which] = given.max(axis=1)
            gaps = 0.5 * inner(scaled, scaled).ravel()
            # Where rows can be told apart perfectly, the value goes to nothing, and no distance
            # from the minimum is a small share of it.
            near = gaps <= _GAP * head.tol * np.maximum(values, head.tol)
            return values, scaled, (norms[which] <= head.tol) & near

        minima = minimise_in_lockstep(
            function,
            shape,
            most=2 * head.max_iter,
            noise=_SINGLE_NOISE if self._kind == np.float32 else _DOUBLE_NOISE,
        )
        self.norm = float(norms.max())
        self.converged = bool((minima.finished | (norms <= head.tol)).all())
        assert frame is not None
        return W + frame.turned(minima.points.reshape(W.shape)), minima.passes


def initial_lines(targets: Targets, width: int, head: Any) -> NDArray[np.float64]:
    """Coefficients that say what the shares of classes or labels say, (outputs, width + 1)."""
    W = np.zeros((targets.outputs, width + 1))
    if head.fit_intercept:
        W[:, -1] = targets.shares()
    return W


@dataclass(frozen=True, eq=False)
class Frame:
    """Variables in which second derivatives are at most about 1."""

    scale: NDArray[np.float64]
    directions: NDArray[np.floating[Any]] | None

    @classmethod
    def of(
        cls,
        spread: NDArray[np.float64],
        directions: NDArray[np.floating[Any]] | None,
        curvature: NDArray[np.float64],
        penalty: NDArray[np.float64],
    ) -> Frame:
        """Bound second derivatives by a spread (k,), eigenvalues (d,) and penalties."""
        bound = spread[:, None] * np.append(curvature, 1.0)
        bound[:, :-1] += penalty[:, None]
        return cls(1 / np.sqrt(np.maximum(bound, 1e-12)), directions)

    def turned(self, V: NDArray[Any], which: Any = slice(None)) -> NDArray[np.float64]:
        """Return coefficients."""
        V = self.scale[which] * V
        if self.directions is None:
            return V
        inner = V[:, :-1].astype(self.directions.dtype) @ self.directions.T
        return np.column_stack([inner.astype(np.float64), V[:, -1]])

    def turned_back(self, G: NDArray[Any], which: Any = slice(None)) -> NDArray[np.float64]:
        """Return derivatives by these variables from those by coefficients."""
        if self.directions is not None:
            inner = G[:, :-1].astype(self.directions.dtype) @ self.directions
            G = np.column_stack([inner.astype(np.float64), G[:, -1]])
        scaled: NDArray[np.float64] = self.scale[which] * G
        return scaled


def _given(gradient: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a gradient on centred features into one on the features as they are."""
    return gradient[:, :-1] + gradient[:, -1:] * mean if mean.any() else gradient
