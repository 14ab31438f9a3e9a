"""Logistic regression from a stream of batches: L-BFGS, a pass a step, from a good start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp
from sklearn.utils.class_weight import compute_class_weight

from featx.exceptions import HeadError
from featx.heads.dense_batches import BatchSource
from featx.heads.streaming import ChosenRows

__all__ = ["fit_logistic_streamed"]

logger = logging.getLogger("featx")

_SAMPLE_SHARE = 3
_SQUARES = 16
# A step ends the descent when the objective is within this share of its tolerance of the minimum.
_GAP = 0.01
# Below this, sums of products in single precision are what ends it.
_SINGLE_TOL = 1e-5
_SAMPLE_ROWS = 2048


def fit_logistic_streamed(head: Any, source: BatchSource, y: Any, *, max_ram_bytes: int) -> Any:
    """Fit ``LogisticRegression`` (L2) to its own objective and tolerance.

    Parameters
    ----------
    head : LogisticRegression
        Fitted in place; whatever its solver, by L-BFGS.
    source : BatchSource
    y : ndarray of shape (n,)
    max_ram_bytes : int
        A third of it bounds the rows that the start is found on.

    Returns
    -------
    head : LogisticRegression

    Raises
    ------
    HeadError
        For another penalty than L2.

    Notes
    -----
    A random sample of the rows that fits into memory is solved first. Its solution is the start,
    and its Gram matrix with the mean of ``p (1 - p)`` of each class is the stand-in for the
    curvature whose inverse root the variables are scaled by; both save passes over all rows. It
    ends where scikit-learn's ``lbfgs`` does (the largest entry of the gradient over the sum of
    weights is at most ``tol``), and the estimated distance of the objective from its minimum is at
    most ``tol / 100`` of it.

    Böhning: "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
    """
    _require_l2(head)
    head.classes_, codes = np.unique(y, return_inverse=True)
    by_class = np.asarray(compute_class_weight(head.class_weight, classes=head.classes_, y=y))
    width = int(next(iter(source(None)))[0].shape[1])
    most = max(1, max_ram_bytes // _SAMPLE_SHARE // (4 * width))
    rows = np.arange(len(codes))
    if most < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    sample = _gather(ChosenRows(source, len(codes), rows), len(rows), width)
    mean = sample.mean(axis=0, dtype=np.float64) if head.fit_intercept else np.zeros(width)
    total = float(by_class @ np.bincount(codes))
    penalty = 0.0 if np.isinf(head.C) else 1 / (head.C * total)
    problem = _Problem(_pieces(sample), codes[rows], by_class, mean, penalty, head)
    directions, curvature = _curvature(sample, mean, max_ram_bytes)
    W = problem.start()
    W, iterations = problem.descend(W, directions, curvature, head)
    if len(rows) < len(codes):
        spread = problem.spread
        problem = _Problem(source, codes, by_class, mean, penalty, head)
        problem.spread = spread
        del sample
        W, more = problem.descend(W, directions, curvature, head)
        iterations += more
    if not problem.converged:
        logger.warning(
            "logistic regression did not converge in %d passes to tol=%.1e: its largest gradient "
            "entry is %.1e; raise max_iter, or lower C",
            iterations,
            head.tol,
            problem.norm,
        )
    head.coef_ = W[:, :-1].astype(np.float32)
    constant = W[:, -1] - W[:, :-1] @ mean if head.fit_intercept else np.zeros(len(W))
    if len(W) > 1:
        constant = constant - constant.mean()
    head.intercept_ = constant.astype(np.float32)
    head.n_iter_ = np.array([iterations], dtype=np.int32)
    head.n_features_in_ = width
    return head


class _Problem:
    """The objective over the rows of a stream, and the descent on it.

    Coefficients are (k, d + 1), the intercept last, of features less ``mean``; k is 1 for two
    classes.
    """

    def __init__(
        self,
        source: BatchSource,
        codes: NDArray[np.intp],
        by_class: NDArray[np.float64],
        mean: NDArray[np.float64],
        penalty: float,
        head: Any,
    ) -> None:
        self._source, self._codes, self._by_class = source, codes, by_class
        self._mean, self._penalty, self._intercept = mean, penalty, bool(head.fit_intercept)
        self._counts = np.bincount(codes, minlength=len(by_class))
        self._total = float(by_class @ self._counts)
        self._kind = np.float32 if head.tol >= _SINGLE_TOL else np.float64
        shares = by_class * self._counts / self._total
        spread = shares * (1 - shares)
        # Mean of p (1 - p) of each class where the descent began.
        self.spread = np.maximum(spread[1:] if len(by_class) == 2 else spread, 1e-6)
        self.norm, self.converged = np.inf, False

    def start(self) -> NDArray[np.float64]:
        """Coefficients that say what the classes' shares say."""
        shares = np.maximum(self._by_class * self._counts / self._total, 1e-6)
        W = np.zeros((len(self.spread), len(self._mean) + 1))
        if self._intercept:
            logs = np.log(shares)
            W[:, -1] = logs[1:] - logs[:1] if len(W) == 1 else logs - logs.mean()
        return W

    def value(self, W: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the objective over the sum of weights, and its gradient, from one pass."""
        kind: Any = self._kind
        coef: NDArray[np.floating[Any]] = W[:, :-1].T.astype(kind)
        constant = W[:, -1]
        mean = self._mean.astype(np.float32)
        gradient = np.zeros_like(W)
        loss, spread = 0.0, np.zeros(len(W))
        for X, rows in self._source(None):
            near: NDArray[np.floating[Any]] = (X - mean).astype(kind, copy=False)
            codes = self._codes[rows]
            weights = self._by_class[codes]
            losses, P = _losses((near @ coef).astype(np.float64) + constant, codes)
            loss += float(weights @ losses)
            spread += weights @ (P * (1 - P))
            P[np.arange(len(P)), codes - (P.shape[1] == 1)] -= codes >= (P.shape[1] == 1)
            P *= weights[:, None]
            residual: NDArray[np.floating[Any]] = P.T.astype(kind)
            gradient[:, :-1] += residual @ near
            gradient[:, -1] += P.sum(axis=0)
        self._latest = np.maximum(spread / self._total, 1e-6)
        gradient /= self._total
        gradient[:, :-1] += self._penalty * W[:, :-1]
        if not self._intercept:
            gradient[:, -1] = 0
        value = loss / self._total + 0.5 * self._penalty * float((W[:, :-1] ** 2).sum())
        return value, gradient

    def descend(
        self,
        W: NDArray[np.float64],
        directions: NDArray[np.float32] | None,
        curvature: NDArray[np.float64],
        head: Any,
    ) -> tuple[NDArray[np.float64], int]:
        """Minimise from W; return where it ended and after how many passes."""
        penalties = np.append(np.full(len(curvature), self._penalty), 0.0)
        bound = self.spread[:, None] * np.append(curvature, 1.0) + penalties
        scale = 1 / np.sqrt(np.maximum(bound, 1e-12))
        best: dict[str, Any] = {"value": np.inf, "W": W}
        passes = 0

        def turned(V: NDArray[Any]) -> NDArray[np.float64]:
            if directions is None:
                return V
            inner = V[:, :-1].astype(directions.dtype) @ directions.T
            return np.column_stack([inner.astype(np.float64), V[:, -1]])

        def turned_back(G: NDArray[Any]) -> NDArray[np.float64]:
            if directions is None:
                return G
            inner = G[:, :-1].astype(directions.dtype) @ directions
            return np.column_stack([inner.astype(np.float64), G[:, -1]])

        def function(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal passes
            at = start + turned(scale * flat.reshape(W.shape))
            value, gradient = self.value(at)
            passes += 1
            scaled = scale * turned_back(gradient)
            norm = float(np.abs(_given(gradient, self._mean)).max())
            if value <= best["value"]:
                best.update(value=value, W=at)
                self.norm = norm
                if passes == 1 or norm <= head.tol:
                    self.spread = self._latest
            if norm <= head.tol and 0.5 * float((scaled**2).sum()) <= _GAP * head.tol * value:
                best.update(value=value, W=at)
                self.norm, self.converged, self.spread = norm, True, self._latest
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


def _given(gradient: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a gradient on centred features into one on the features as they are."""
    return gradient[:, :-1] + gradient[:, -1:] * mean if mean.any() else gradient


def _losses(
    Z: NDArray[np.float64], codes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's loss and the probabilities (b, k), of the second class alone for two."""
    if Z.shape[1] == 1:
        signed = np.where(codes == 1, Z[:, 0], -Z[:, 0])
        return -log_expit(signed), expit(Z)
    logs = logsumexp(Z, axis=1)
    losses = logs - Z[np.arange(len(Z)), codes]
    Z -= logs[:, None]
    return losses, np.exp(Z)


def _curvature(
    sample: NDArray[np.float32], mean: NDArray[np.float64], max_ram_bytes: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float64]]:
    """Return eigenvectors and eigenvalues of the sample's covariance, or its diagonal."""
    width = sample.shape[1]
    if _SQUARES * width**2 > max_ram_bytes // 2:
        squares = np.einsum("ij,ij->j", sample, sample, dtype=np.float64) / len(sample)
        return None, np.maximum(squares - mean**2, 0)
    centre = mean.astype(np.float32)
    gram = np.zeros((width, width), dtype=np.float32)
    for part in np.array_split(sample, -(-len(sample) // _SAMPLE_ROWS)):
        near = part - centre
        gram += near.T @ near
    gram /= len(sample)
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False, overwrite_a=True)
    return vectors, np.maximum(values.astype(np.float64), 0)


def _gather(source: BatchSource, count: int, width: int) -> NDArray[np.float32]:
    X = np.empty((count, width), dtype=np.float32)
    for part, places in source(None):
        X[places] = part
    return X


def _pieces(X: NDArray[np.float32]) -> BatchSource:
    def source(_: Any) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
        for start in range(0, len(X), _SAMPLE_ROWS):
            part = X[start : start + _SAMPLE_ROWS]
            yield part, np.arange(start, start + len(part))

    return source


def _require_l2(head: Any) -> None:
    penalty, ratio = getattr(head, "penalty", "l2"), getattr(head, "l1_ratio", None)
    if penalty not in ("l2", "deprecated", None) or ratio not in (None, 0, 0.0):
        raise HeadError(
            f"logistic regression with penalty={penalty!r}, l1_ratio={ratio!r} has to see all rows "
            "at once: leave both out, for L2"
        )
    if penalty is None:
        raise HeadError("logistic regression without a penalty has to see all rows at once: set C")
