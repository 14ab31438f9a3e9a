"""Logistic regression from a stream of batches: L-BFGS, a pass a step, from a good start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.class_weight import compute_class_weight

from featx.exceptions import HeadError
from featx.heads.dense_batches import BatchSource
from featx.heads.logistic_problem import StreamedProblem, initial_lines
from featx.heads.logistic_targets import LEAST, ClassTargets, LabelTargets, Targets
from featx.heads.streaming import ChosenRows

logger = logging.getLogger("featx")

_SAMPLE_SHARE = 3
_SQUARES = 16
_SAMPLE_ROWS = 2048


def fit_logistic_streamed(head: Any, source: BatchSource, y: Any, *, max_ram_bytes: int) -> Any:
    """Fit ``LogisticRegression`` (L2) to its own objective and tolerance.

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
    head.classes_, codes = np.unique(y, return_inverse=True)
    by_class = np.asarray(compute_class_weight(head.class_weight, classes=head.classes_, y=y))

    def chosen(rows: NDArray[np.intp]) -> Targets:
        return ClassTargets(codes[rows], by_class)

    W, mean, iterations = _minimum(head, source, chosen, len(codes), max_ram_bytes)
    constant = _intercepts(W, mean, head)
    if len(W) > 1:
        constant = constant - constant.mean()
    return _take(head, W, constant, iterations)


def fit_logistic_labels(
    estimator: Any, source: BatchSource, labels: NDArray[np.uint8], *, max_ram_bytes: int
) -> tuple[list[Any], NDArray[np.float64]]:
    """Fit a copy of ``LogisticRegression`` (L2) for each label, all in the same passes."""
    weights = _label_weights(estimator.class_weight, labels)

    def chosen(rows: NDArray[np.intp]) -> Targets:
        return LabelTargets(labels[rows] if len(rows) < len(labels) else labels, weights)

    W, mean, iterations = _minimum(estimator, source, chosen, len(labels), max_ram_bytes)
    found = []
    for line, constant in zip(W, _intercepts(W, mean, estimator), strict=True):
        head = clone(estimator)
        head.classes_ = np.arange(2)
        found.append(_take(head, line[None], constant[None], iterations))
    return found, np.empty(0)


def _minimum(
    head: Any,
    source: BatchSource,
    targets: Callable[[NDArray[np.intp]], Targets],
    count: int,
    max_ram_bytes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return coefficients of features less a mean, that mean, and the number of passes."""
    _require_l2(head)
    width = int(next(iter(source(None)))[0].shape[1])
    most = max(1, max_ram_bytes // _SAMPLE_SHARE // (4 * width))
    every = rows = np.arange(count)
    if most < count:
        rows = np.sort(np.random.default_rng(0).choice(every, most, replace=False))
    sample = _gather(ChosenRows(source, count, rows), len(rows), width)
    mean = sample.mean(axis=0, dtype=np.float64) if head.fit_intercept else np.zeros(width)
    whole = targets(every)
    penalty = np.zeros_like(whole.totals) if np.isinf(head.C) else 1 / (head.C * whole.totals)
    chosen = targets(rows)
    squares = np.einsum("ij,ij->j", sample, sample, dtype=np.float64)
    scale = float(np.sqrt(squares.max(initial=0.0) / len(sample)))
    problem = StreamedProblem(_pieces(sample), chosen, mean, penalty, head, scale=scale)
    directions, curvature = _curvature(sample, mean, max_ram_bytes)
    start = initial_lines(whole, width, head)
    W, iterations = problem.descend(start, directions, curvature, head)
    if len(rows) < count:
        # A sample without a row of a class, or of a label, has no minimum for its intercept.
        absent = chosen.spread() <= LEAST
        W[absent] = start[absent]
        # What varies in one of so many rows may well be constant in the sample.
        curvature = curvature + curvature.mean() / len(rows)
        problem = StreamedProblem(source, whole, mean, penalty, head, scale=scale)
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
    return W, mean, iterations


def _intercepts(
    W: NDArray[np.float64], mean: NDArray[np.float64], head: Any
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = W[:, -1] - W[:, :-1] @ mean
    return found if head.fit_intercept else np.zeros(len(W))


def _take(head: Any, W: NDArray[np.float64], constant: NDArray[np.float64], iterations: int) -> Any:
    head.coef_ = W[:, :-1].astype(np.float32)
    head.intercept_ = constant.astype(np.float32)
    head.n_iter_ = np.array([iterations], dtype=np.int32)
    head.n_features_in_ = W.shape[1] - 1
    return head


def _label_weights(class_weight: Any, labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what a row without each label counts there, and what one with it, (2, k)."""
    if class_weight is None:
        return np.ones((2, labels.shape[1]))
    if class_weight == "balanced":
        present = labels.sum(axis=0, dtype=np.intp)
        balanced: NDArray[np.float64] = len(labels) / (
            2 * np.stack([len(labels) - present, present])
        )
        return balanced
    both = np.arange(2)
    one = np.asarray(compute_class_weight(class_weight, classes=both, y=both), np.float64)
    return np.tile(one[:, None], labels.shape[1])


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
