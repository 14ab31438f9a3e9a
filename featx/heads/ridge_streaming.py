"""Ridge regression on the classes from a stream of batches: one pass for the normal equations."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.class_weight import compute_class_weight

from featx.exceptions import HeadError
from featx.heads.calibrated import TemperatureCalibrated, fit_temperature
from featx.heads.label_sums import streamed_label_sums
from featx.heads.rows import BatchSource
from featx.heads.scatter import streamed_scatter
from featx.heads.streaming import ChosenRows, judged_rows
from featx.memory import shown_bytes

_COPIES = 3


def fit_ridge_streamed(head: Any, source: BatchSource, y: Any, *, max_ram_bytes: int) -> Any:
    """Fit ``RidgeClassifier`` by its normal equations, in double precision."""
    _require_any_sign(head)
    binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(y)
    classes = binarizer.classes_
    codes = np.searchsorted(classes, y)
    weights = np.asarray(compute_class_weight(head.class_weight, classes=classes, y=y))
    require_square(source, max_ram_bytes, _COPIES)
    scatter = streamed_scatter(source, codes, len(classes), gram=True, weights=weights)
    assert scatter.gram is not None
    counts = weights * scatter.counts
    sums = weights[:, None] * scatter.sums
    total, whole = counts.sum(), sums.sum(axis=0)
    # Of targets 1 and -1, weighted: what each class adds twice, less everything.
    product, share = 2 * sums - whole, 2 * counts - total
    if len(classes) == 2:
        product, share = product[1:], share[1:]
    return _solve(head, binarizer, scatter.gram, product, share, scatter.shift, whole, total)


def fit_ridge_labels(
    estimator: TemperatureCalibrated,
    source: BatchSource,
    labels: NDArray[np.uint8],
    *,
    max_ram_bytes: int,
) -> tuple[list[Any], NDArray[np.float64]] | None:
    """Fit one ``RidgeClassifier`` for all labels, and a temperature for each, in two passes.

    Notes
    -----
    With H the matrix that maps targets to fitted values, intercept included, the residual of a
    row that was left out is its residual over 1 - H_ii: Golub, Heath, Wahba: "Generalized
    cross-validation as a method for choosing a good ridge parameter", Technometrics 21 (1979).
    """
    if not isinstance(estimator, TemperatureCalibrated) or estimator.estimator.class_weight:
        return None
    ridge = clone(estimator.estimator)
    _require_any_sign(ridge)
    require_square(source, max_ram_bytes, _COPIES)
    rows, width = labels.shape
    found = streamed_label_sums(source, labels, gram=True)
    assert found.gram is not None
    product, share = 2 * found.sums - found.whole, 2 * found.counts - rows
    # What it learns is the number of labels.
    binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(np.eye(width, dtype=int))
    _solve(ridge, binarizer, found.gram, product, share, found.shift, found.whole, rows)
    try:
        inverse = scipy.linalg.inv(found.gram, check_finite=False)
    except scipy.linalg.LinAlgError:
        inverse = scipy.linalg.pinvh(found.gram, check_finite=False)
    centre = found.shift + found.whole / rows if ridge.fit_intercept else 0 * found.shift
    held = judged_rows(np.arange(rows), width, max_ram_bytes)
    targets = 2.0 * labels[held] - 1
    margins = np.empty((len(held), width))
    for X, places in ChosenRows(source, rows, held)(None):
        near = X - centre
        leverage = np.einsum("ij,ij->i", near @ inverse, near)
        if ridge.fit_intercept:
            leverage += 1 / rows
        residual = targets[places] - ridge.decision_function(X)
        margins[places] = targets[places] - residual / np.maximum(1 - leverage, 1e-6)[:, None]
    temperatures = [
        fit_temperature(np.column_stack([-one, one]), (target > 0).astype(np.intp))
        for one, target in zip(margins.T, targets.T, strict=True)
    ]
    return [ridge], np.array(temperatures)


def _require_any_sign(head: Any) -> None:
    if head.positive:
        raise HeadError("ridge with positive=True has to see all rows at once: leave it at False")


def _solve(
    head: Any,
    binarizer: LabelBinarizer,
    gram: NDArray[np.floating[Any]],
    product: NDArray[np.float64],
    share: NDArray[np.float64],
    shift: NDArray[np.float64],
    whole: NDArray[np.float64],
    total: float,
) -> Any:
    """Solve the normal equations of sums over rows less a shift; `gram` is overwritten."""
    mean = whole / total
    if head.fit_intercept:
        gram -= np.outer(mean, whole)
        product -= np.outer(share, mean)
    else:
        gram += np.outer(whole, shift) + np.outer(shift, whole) + total * np.outer(shift, shift)
        product += np.outer(share, shift)
    gram.flat[:: len(gram) + 1] += head.alpha
    try:
        coef = scipy.linalg.solve(gram, product.T, assume_a="pos", check_finite=False).T
    except scipy.linalg.LinAlgError:
        coef = scipy.linalg.lstsq(gram, product.T)[0].T
    head._label_binarizer = binarizer
    with suppress(AttributeError):  # a property of that up to scikit-learn 1.8
        head.classes_ = binarizer.classes_
    head.coef_ = coef.astype(np.float32)
    head.intercept_ = np.float64(0.0)
    if head.fit_intercept:
        head.intercept_ = (share / total - coef @ (mean + shift)).astype(np.float32)
    head.n_features_in_ = coef.shape[1]
    head.n_iter_, head.solver_ = None, "cholesky"
    return head


def require_square(source: BatchSource, max_ram_bytes: int, copies: int) -> int:
    """Refuse a bound that cannot hold matrices of the number of features squared."""
    width = int(next(iter(source(None)))[0].shape[1])
    needed = copies * 8 * width**2
    if needed > max_ram_bytes:
        raise HeadError(
            f"this head sums products of {width:,} features, for which it needs "
            f"{shown_bytes(needed)}, more than the {shown_bytes(max_ram_bytes)} that it may have "
            "beside the batches: raise --max-ram (max_ram=...), or take nearest-mean, logistic or "
            "dense"
        )
    return width
