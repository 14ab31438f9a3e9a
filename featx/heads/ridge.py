"""Ridge regression on the classes: every penalty from one reduction of the Gram matrix."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight

from featx.exceptions import HeadError
from featx.heads.rows import Fold
from featx.heads.scatter import Scale, Scatter, fold_scatters
from featx.heads.shifted import ShiftedSystems
from featx.heads.sweep import HeldOut, checked_data, core_estimators

_COLUMNS = 1024


def sweep_ridge(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure penalties of the head ``ridge`` (see `Sweep`).

    Notes
    -----
    With X standardised and centred, the coefficients are ``(X'X + alpha I)^-1 X'Y``, or, for
    more columns than rows, ``X' (XX' + alpha I)^-1 Y``: `ShiftedSystems` solves for all penalties.
    Without weights the Gram matrix of a fold is that of all rows less that of its testing rows.
    Weights are of the regression alone: the scaler before the head does not know them.
    """
    X, y = checked_data(X, y, folds, sample_weight)
    groups = _grouped(core_estimators("ridge", candidates, seed=seed))
    least = min(len(train) for train, _ in folds)
    plain = sample_weight is None and least >= X.shape[1]
    shared = plain and any(weight is None and fit for weight, fit, _ in groups)
    scatters = fold_scatters(X, y, folds, gram=shared)
    for fold, ((train, test), scatter) in enumerate(zip(folds, scatters, strict=True)):
        scale = scatter.scale()
        tested = scale.apply(X[test])
        for weight, intercept, alphas in groups:
            numbers, values = list(alphas), list(alphas.values())
            if shared and weight is None and intercept:
                coef, constant = _from_scatter(scatter, scale, values)
            else:
                rows = _row_weights(weight, y[train], sample_weight, train)
                coef, constant = _from_rows(
                    scale.apply(X[train]), y[train], rows, values, intercept
                )
            found = _margins(tested, coef, constant)
            for number, margins in zip(numbers, found, strict=True):
                yield HeldOut(number, fold, _columns(margins), probabilities=False)


def _grouped(estimators: Sequence[Any]) -> list[tuple[Any, bool, dict[int, float]]]:
    """Put together the settings that differ in the penalty alone."""
    groups: dict[Hashable, tuple[Any, bool, dict[int, float]]] = {}
    for number, estimator in enumerate(estimators):
        if estimator.positive:
            raise HeadError("ridge with positive=True has no shortcut: leave it at False")
        weight, intercept = estimator.class_weight, bool(estimator.fit_intercept)
        key = (repr(weight), intercept)
        groups.setdefault(key, (weight, intercept, {}))[2][number] = float(estimator.alpha)
    return list(groups.values())


def _row_weights(
    class_weight: Any,
    codes: NDArray[np.intp],
    sample_weight: NDArray[Any] | None,
    train: NDArray[np.intp],
) -> NDArray[np.float64] | None:
    if class_weight is None and sample_weight is None:
        return None
    weights = np.ones(len(codes)) if sample_weight is None else sample_weight[train]
    if class_weight is not None:
        weights = weights * compute_sample_weight(class_weight, codes)
    found: NDArray[np.float64] = weights.astype(np.float64)
    return found


def _from_scatter(
    scatter: Scatter, scale: Scale, alphas: Sequence[float]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    assert scatter.gram is not None
    mean = scatter.sums.sum(axis=0) / scatter.rows
    deviation = scale.deviation.astype(scatter.gram.dtype)
    gram = scatter.gram / deviation
    gram /= deviation[:, None]
    reduced = (mean / scale.deviation * np.sqrt(scatter.rows)).astype(gram.dtype)
    gram -= np.outer(reduced, reduced)
    # Of targets 1 and -1: twice the sums of the class, since standardised columns sum to zero.
    product = 2 * scatter.counts[:, None] * scatter.means(scale)
    share = 2 * scatter.counts / scatter.rows - 1
    if len(share) == 2:
        product, share = product[1:], share[1:]
    coef = ShiftedSystems(gram).solve(product.T, alphas)
    return coef, np.tile(share.astype(coef.dtype), (len(alphas), 1))


def _from_rows(
    X: NDArray[Any],
    codes: NDArray[np.intp],
    weights: NDArray[np.float64] | None,
    alphas: Sequence[float],
    intercept: bool,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    target = _targets(codes)
    mean, offset = np.zeros(X.shape[1]), np.zeros(target.shape[1])
    if intercept:
        mean = np.average(X, axis=0, weights=weights)
        offset = np.average(target, axis=0, weights=weights)
    X, target = X - mean.astype(X.dtype), target - offset
    if weights is not None:
        root = np.sqrt(weights)[:, None]
        X, target = X * root.astype(X.dtype), target * root
    target = target.astype(X.dtype)
    if X.shape[1] > X.shape[0]:
        dual = ShiftedSystems((wide := X.astype(np.float64)) @ wide.T).solve(target, alphas)
        coef = wide.T @ dual
    else:
        coef = ShiftedSystems(X.T @ X).solve(X.T @ target, alphas)
    return coef.astype(X.dtype), (offset - mean @ coef).astype(X.dtype)


def _margins(
    X: NDArray[Any], coef: NDArray[Any], intercept: NDArray[Any]
) -> Iterator[NDArray[np.floating[Any]]]:
    """Give the margins of each penalty, from products of many columns at once."""
    penalties, width, targets = coef.shape
    step = max(1, _COLUMNS // targets)
    for start in range(0, penalties, step):
        some = coef[start : start + step].swapaxes(0, 1).reshape(width, -1)
        margins = (X @ some).reshape(len(X), -1, targets)
        yield from margins.swapaxes(0, 1) + intercept[start : start + step, None]


def _targets(codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give 1 for the class of a row and -1 else, a column a class, or one for two classes."""
    target = np.where(codes[:, None] == np.arange(codes.max() + 1), 1.0, -1.0)
    return target[:, 1:] if target.shape[1] == 2 else target


def _columns(margins: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.hstack([-margins, margins]) if margins.shape[1] == 1 else margins
