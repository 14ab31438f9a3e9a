"""Ridge regression on classes, labels or values: every penalty from one set of sums."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from featx.exceptions import HeadError
from featx.heads.moments import Moments, fold_moments, require_square, solve_shifted, standardise
from featx.heads.rows import Doubles, Floats, Numbers, Rows
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import ClassWeight, Targets, value_scale

if TYPE_CHECKING:
    from sklearn.linear_model import Ridge, RidgeClassifier

_COLUMNS = 1024
_COPIES = 3


def is_solved(head: Ridge | RidgeClassifier, *, streamed: bool = False) -> bool:
    """Tell whether the normal equations come to the answer of an estimator's own ``fit``."""
    exact = streamed or head.solver in ("auto", "cholesky", "svd")
    return exact and not head.positive and isinstance(head.alpha, Real)


def fits_labels_at_once(estimator: object) -> bool:
    """Tell whether one fit of a margin classifier serves all labels."""
    from sklearn.linear_model import RidgeClassifier

    # Class weights are one number a row there, and would have to be one a label.
    return isinstance(estimator, RidgeClassifier) and estimator.class_weight is None


def fit_ridge(head: RidgeClassifier, rows: Rows, targets: Targets) -> list[RidgeClassifier] | None:
    """Fit ``RidgeClassifier`` on classes or label sets by its normal equations."""
    if not _is_solvable(head, rows):
        return None
    weighted = _weighted(targets, head.class_weight)
    coef, intercept = solve_ridge(rows, weighted, [float(head.alpha)], bool(head.fit_intercept))
    return [_take(head, coef[0], intercept[0], rows, targets)]


def fit_ridge_values(head: Ridge, rows: Rows, targets: Targets) -> list[Ridge] | None:
    """Fit ``Ridge`` on values by its normal equations."""
    if not _is_solvable(head, rows):
        return None
    coef, intercept = solve_ridge(rows, targets, [float(head.alpha)], bool(head.fit_intercept))
    dtype = np.float32 if rows.matrix is None else rows.matrix.dtype
    # As scikit-learn has them: of one value, a vector and a number.
    head.coef_ = np.ascontiguousarray(coef[0].T if targets.columns > 1 else coef[0][:, 0], dtype)
    head.intercept_ = intercept[0] if targets.columns > 1 else intercept[0, 0]
    head.n_features_in_, head.n_iter_, head.solver_ = rows.width, None, "cholesky"
    return [head]


def _is_solvable(head: Ridge | RidgeClassifier, rows: Rows) -> bool:
    """Tell whether to solve the normal equations; `HeadError` where nothing else can be done."""
    if rows.matrix is None and not is_solved(head, streamed=True):
        raise HeadError("ridge with positive=True has to see all rows at once: leave it at False")
    if not is_solved(head, streamed=rows.matrix is None):
        return False
    head._validate_params()
    return True


def _centred(targets: Targets) -> tuple[Targets, Doubles]:
    """Return values less their mean, so that rounding is of their spread, and the mean."""
    mean, _ = value_scale(targets)
    return replace(targets, values=targets.values - mean), mean


def fit_ridge_left_out(
    head: RidgeClassifier, rows: Rows, targets: Targets
) -> tuple[Floats, Numbers]:
    """Fit on label sets in batches; return margins of rows from fits without each, and which rows.

    Notes
    -----
    With H the matrix that maps targets to fitted values, intercept included, the residual of a
    row that was left out is its residual over 1 - H_ii: Golub, Heath, Wahba: "Generalized
    cross-validation as a method for choosing a good ridge parameter", Technometrics 21 (1979).
    """
    require_square(rows, _COPIES)
    moments = Moments.of(rows, targets, gram=True)
    alpha, fits = float(head.alpha), bool(head.fit_intercept)
    coef, constant = _from_moments(moments, targets, [alpha], fits)
    _take(head, coef[0], constant[0], rows, targets)
    inverse = solve_shifted(
        _centred_gram(moments, fits), np.eye(rows.width), [alpha], moments.dtype
    )[0]
    centre = moments.shift + moments.whole / moments.weight if fits else np.zeros(rows.width)
    judged = rows.drawn(np.arange(len(rows)), targets.columns)
    signs = _signs(targets.take(judged))
    margins = np.empty(signs.shape)
    for X, numbers in rows.take(judged).batches():
        near = X - centre
        leverage = np.einsum("ij,ij->i", near @ inverse, near) + fits / len(rows)
        residual = signs[numbers] - head.decision_function(X)
        margins[numbers] = signs[numbers] - residual / np.maximum(1 - leverage, 1e-6)[:, None]
    return margins, judged


def _take(
    head: RidgeClassifier, coef: Floats, intercept: Floats, rows: Rows, targets: Targets
) -> RidgeClassifier:
    """Give a classifier what its own ``fit`` would have learnt."""
    from sklearn.preprocessing import LabelBinarizer

    names = targets.names if targets.kind == "classes" else np.eye(targets.columns, dtype=int)
    head._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(names)
    with suppress(AttributeError):  # a property of that up to scikit-learn 1.8
        head.classes_ = head._label_binarizer.classes_
    dtype = np.float32 if rows.matrix is None else rows.matrix.dtype
    head.coef_ = np.ascontiguousarray(coef.T, dtype)
    head.intercept_ = intercept.astype(dtype) if head.fit_intercept else np.float64(0.0)
    head.n_features_in_ = rows.width
    head.n_iter_, head.solver_ = None, "cholesky"
    return head


def _weighted(targets: Targets, class_weight: ClassWeight) -> Targets:
    """Return targets with class weights, which as scikit-learn's do not see those of rows."""
    weighted = replace(targets, weights=None).with_class_weight(class_weight)
    return replace(weighted, weights=targets.weights)


def solve_ridge(
    rows: Rows, targets: Targets, alphas: Sequence[float], intercept: bool
) -> tuple[Floats, Floats]:
    """Return coefficients (a, d, k) and intercepts (a, k) of each penalty.

    Notes
    -----
    With X and T less their means, the coefficients are ``(X'X + alpha I)^-1 X'T``, or, for more
    columns than rows, ``X' (XX' + alpha I)^-1 T``. T is 1 for the class or labels of a row and -1
    else, one column alone for two classes.
    """
    learnt, centre = targets, np.zeros(0)
    if intercept and targets.kind == "values":
        learnt, centre = _centred(targets)
    if rows.matrix is not None and rows.width > rows.count:
        coef, constant = _from_rows(rows.matrix, learnt, alphas, intercept)
    else:
        require_square(rows, _COPIES)
        moments = Moments.of(rows, learnt, gram=True)
        coef, constant = _from_moments(moments, learnt, alphas, intercept)
    return coef, constant + centre if centre.size else constant


def _from_moments(
    moments: Moments, targets: Targets, alphas: Sequence[float], intercept: bool
) -> tuple[Floats, Floats]:
    shift, whole, weight = moments.shift, moments.whole, moments.weight
    product, share = moments.sums, moments.counts
    if targets.kind != "values":
        # Of targets 1 and -1: what each class adds twice, less everything.
        product, share = 2 * product - whole, 2 * share - weight
    if targets.kind == "classes" and targets.columns == 2:
        product, share = product[1:], share[1:]
    mean = whole / weight
    gram = _centred_gram(moments, intercept)
    product = product - np.outer(share, mean) if intercept else product + np.outer(share, shift)
    coef = solve_shifted(gram, product.T, alphas, moments.dtype)
    constant = share / weight - (mean + shift) @ coef if intercept else np.zeros(len(share))
    return coef, np.broadcast_to(constant, (len(alphas), len(share)))


def _centred_gram(moments: Moments, intercept: bool) -> Doubles:
    """Return the Gram matrix of the rows less their mean, or of the rows without their shift."""
    assert moments.gram is not None
    shift, whole, weight = moments.shift, moments.whole, moments.weight
    if intercept:
        return moments.gram - np.outer(whole / weight, whole)
    gram = moments.gram + np.outer(whole, shift) + np.outer(shift, whole)
    gram += weight * np.outer(shift, shift)
    return gram


def _from_rows(
    X: Floats, targets: Targets, alphas: Sequence[float], intercept: bool
) -> tuple[Floats, Floats]:
    """Return the same from a matrix with more columns than rows."""
    weights = targets.counted(np.arange(len(X)))
    target = _signs(targets)
    # Of classes in double precision, whatever the features are in.
    dtype = X.dtype if targets.kind == "values" else np.float64
    wide = X.astype(dtype)
    mean, offset = np.zeros(X.shape[1]), np.zeros(target.shape[1])
    if intercept:
        mean = np.average(wide, axis=0, weights=weights)
        offset = np.average(target, axis=0, weights=weights)
    wide, target = wide - mean.astype(dtype), target - offset
    if weights is not None:
        root = np.sqrt(weights)[:, None]
        wide, target = wide * root.astype(dtype), target * root
    coef = wide.T @ solve_shifted(wide @ wide.T, target, alphas, dtype)
    return coef, offset - mean @ coef


def _signs(targets: Targets) -> Doubles:
    """Return what is regressed on, a column a class, label or value."""
    if targets.kind == "values":
        return targets.values.astype(np.float64)
    if targets.kind == "labels":
        return np.where(targets.values > 0, 1.0, -1.0)
    signs = np.where(targets.values[:, None] == np.arange(targets.columns), 1.0, -1.0)
    return signs[:, 1:] if targets.columns == 2 else signs


def _penalties(data: SweepData) -> Iterator[HeldOut]:
    """Measure penalties of the head ``ridge`` (see `Sweep`).

    Notes
    -----
    Without weights the sums of a fold are those of all rows less those of its testing rows.
    Weights are of the regression alone: the scaler before the head does not know them.
    """
    groups = _grouped(data.settings)
    plain = data.targets.weights is None and data.least_trained >= data.X.shape[1]
    shared = plain and any(weight is None for weight, _, _ in groups)
    targets, centre = data.targets, np.zeros(0)
    if (numbers := targets.kind == "values") and all(intercept for _, intercept, _ in groups):
        targets, centre = _centred(targets)
    parts = fold_moments(data.X, replace(targets, weights=None), data.folds, gram=shared)
    for fold, ((train, test), moments) in enumerate(zip(data.folds, parts, strict=True)):
        scale = moments.scale()
        tested = standardise(data.X[test], scale)
        learnt = targets.take(train)
        scaled = moments.standardised(scale) if shared else None
        for weight, intercept, alphas in groups:
            values = list(alphas.values())
            if scaled is not None and weight is None:
                coef, constant = _from_moments(scaled, learnt, values, intercept)
            else:
                trained = Rows.of(standardise(data.X[train], scale))
                coef, constant = solve_ridge(trained, _weighted(learnt, weight), values, intercept)
            constant = constant + centre if centre.size else constant
            margins = _margins(tested, coef, constant, mirrored=not numbers)
            for number, answers in zip(alphas, margins, strict=True):
                yield HeldOut(number, fold, answers, probabilities=False)


sweep_ridge = swept("ridge", weighted=True)(_penalties)
sweep_ridge_values = swept("ridge", weighted=True, learns=("values",))(_penalties)


def _grouped(
    estimators: Sequence[Ridge | RidgeClassifier],
) -> list[tuple[ClassWeight, bool, dict[int, float]]]:
    """Return class weight, intercept and penalties of settings that differ in the penalty alone."""
    groups: dict[Hashable, tuple[ClassWeight, bool, dict[int, float]]] = {}
    for number, estimator in enumerate(estimators):
        if estimator.positive:
            raise HeadError("ridge with positive=True has no shortcut: leave it at False")
        weight = getattr(estimator, "class_weight", None)
        intercept = bool(estimator.fit_intercept)
        key = (repr(weight), intercept)
        groups.setdefault(key, (weight, intercept, {}))[2][number] = float(estimator.alpha)
    return list(groups.values())


def _margins(X: Floats, coef: Floats, intercept: Floats, *, mirrored: bool) -> Iterator[Floats]:
    """Yield margins or values of each penalty, from products of many columns at once."""
    penalties, width, columns = coef.shape
    coef = coef.astype(X.dtype)
    intercept = intercept.astype(X.dtype) if mirrored else intercept
    step = max(1, _COLUMNS // columns)
    for start in range(0, penalties, step):
        some = coef[start : start + step].swapaxes(0, 1).reshape(width, -1)
        products = (X @ some).reshape(len(X), -1, columns).swapaxes(0, 1)
        for margins in products + intercept[start : start + step, None]:
            yield np.hstack([-margins, margins]) if columns == 1 and mirrored else margins
