"""The objective of logistic regression over a stream of batches, and the descents on it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from featx.heads.dense_batches import BatchSource
from featx.heads.lockstep import minimise_in_lockstep
from featx.heads.logistic_targets import LabelTargets, Targets

__all__ = ["Frame", "StreamedProblem"]

# A step ends the descent when the objective is within this share of its tolerance of the minimum.
_GAP = 0.01
# Below this, sums of products in single precision are what ends it.
_SINGLE_TOL = 1e-5
_LEAST_SPREAD = 0.1


class StreamedProblem:
    """The objective over the rows of a stream, and the descent on it.

    Coefficients are (k, d + 1), the intercept last, of features less ``mean``; k is 1 for two
    classes.
    """

    def __init__(
        self,
        source: BatchSource,
        targets: Targets,
        mean: NDArray[np.float64],
        penalty: NDArray[np.float64],
        head: Any,
    ) -> None:
        self._source, self._targets = source, targets
        self._mean, self._penalty, self._intercept = mean, penalty, bool(head.fit_intercept)
        self._kind = np.float32 if head.tol >= _SINGLE_TOL else np.float64
        # Mean of p (1 - p) of each class where the descent began.
        self.spread = targets.spread()
        self.latest = self.spread
        # The labels whose descent goes on, which only become fewer.
        self._left: tuple[NDArray[np.intp], Targets] | None = None
        self.norm, self.converged = np.inf, False

    def start(self) -> NDArray[np.float64]:
        """Coefficients that say what the classes' shares say."""
        W = np.zeros((self._targets.outputs, len(self._mean) + 1))
        if self._intercept:
            W[:, -1] = self._targets.shares()
        return W

    def value(
        self, W: NDArray[np.float64], which: NDArray[np.intp] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the objectives over the sums of weights, and their gradients, from one pass.

        For labels, ``which`` are those that W, a line each, belongs to.
        """
        kind: Any = self._kind
        coef: NDArray[np.floating[Any]] = W[:, :-1].T.astype(kind)
        constant = W[:, -1]
        mean = self._mean.astype(np.float32)
        gradient = np.zeros_like(W)
        targets = self._some(which)
        totals = targets.totals
        penalty = self._penalty if which is None else self._penalty[which]
        losses, spread = np.zeros(len(totals)), np.zeros(len(W))
        for X, rows in self._source(None):
            near: NDArray[np.floating[Any]] = (X - mean).astype(kind, copy=False)
            found = targets.judge((near @ coef).astype(np.float64) + constant, rows)
            losses += found[0]
            spread += found[1]
            residual: NDArray[np.floating[Any]] = found[2].T.astype(kind)
            gradient[:, :-1] += residual @ near
            gradient[:, -1] += found[2].sum(axis=0)
        self.latest = np.maximum(spread / totals, 1e-6)
        gradient /= totals[:, None]
        gradient[:, :-1] += penalty[:, None] * W[:, :-1]
        if not self._intercept:
            gradient[:, -1] = 0
        lengths = (W[:, :-1] ** 2).sum(axis=1).reshape(len(totals), -1).sum(axis=1)
        values: NDArray[np.float64] = losses / totals + 0.5 * penalty * lengths
        return values, gradient

    def _some(self, which: NDArray[np.intp] | None) -> Targets:
        if which is None or len(which) == self._targets.outputs:
            return self._targets
        if self._left is None or self._left[0].size != which.size:
            assert isinstance(self._targets, LabelTargets)
            self._left = which, self._targets.take(which)
        return self._left[1]

    def descend(
        self,
        W: NDArray[np.float64],
        directions: NDArray[np.float32] | None,
        curvature: NDArray[np.float64],
        head: Any,
    ) -> tuple[NDArray[np.float64], int]:
        """Minimise from W; return where it ended and after how many passes."""
        frame = Frame.of(self.spread, directions, curvature, self._penalty)
        best: dict[str, Any] = {"value": np.inf, "W": W}
        passes = 0

        def function(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal passes
            at = start + frame.turned(flat.reshape(W.shape))
            values, gradient = self.value(at)
            value = float(values.sum())
            passes += 1
            scaled = frame.turned_back(gradient)
            norm = float(np.abs(_given(gradient, self._mean)).max())
            if value <= best["value"]:
                best.update(value=value, W=at)
                self.norm = norm
                if passes == 1 or norm <= head.tol:
                    self.spread = self.latest
            if norm <= head.tol and 0.5 * float((scaled**2).sum()) <= _GAP * head.tol * value:
                best.update(value=value, W=at)
                self.norm, self.converged, self.spread = norm, True, self.latest
                raise StopIteration
            return value, scaled.ravel()

        start = W
        with suppress(StopIteration):
            minimize(
                function,
                np.zeros(W.size),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": head.max_iter,
                    "maxfun": 2 * head.max_iter,
                    "gtol": 0.0,
                    "ftol": 0.0,
                    "maxcor": 10,
                },
            )
        self.converged = self.converged or self.norm <= head.tol
        return best["W"], passes

    def descend_each(
        self,
        W: NDArray[np.float64],
        directions: NDArray[np.float32] | None,
        curvature: NDArray[np.float64],
        head: Any,
    ) -> tuple[NDArray[np.float64], int]:
        """Minimise every label's own objective from W; return as `descend`."""
        frame = Frame.of(self.spread, directions, curvature, self._penalty)
        norms = np.full(len(W), np.inf)
        least = _LEAST_SPREAD * self._targets.spread()

        def function(
            points: NDArray[np.float64], which: NDArray[np.intp]
        ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
            nonlocal frame
            values, gradient = self.value(W[which] + frame.turned(points, which), which)
            if not points.any():
                # A label that is rare has hardly a row in a sample, which says little of it.
                spread = np.maximum(self.latest, least[which])
                frame = Frame.of(spread, directions, curvature, self._penalty)
            scaled = frame.turned_back(gradient, which)
            norms[which] = np.abs(_given(gradient, self._mean)).max(axis=1)
            gaps = 0.5 * (scaled**2).sum(axis=1)
            return values, scaled, (norms[which] <= head.tol) & (gaps <= _GAP * head.tol * values)

        found = minimise_in_lockstep(function, W.shape, most=2 * head.max_iter)
        self.norm = float(norms.max())
        self.converged = bool((found.finished | (norms <= head.tol)).all())
        return W + frame.turned(found.points), found.passes


@dataclass(frozen=True, eq=False)
class Frame:
    """Variables in which second derivatives are at most about 1."""

    scale: NDArray[np.float64]
    directions: NDArray[np.float32] | None

    @classmethod
    def of(
        cls,
        spread: NDArray[np.float64],
        directions: NDArray[np.float32] | None,
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
