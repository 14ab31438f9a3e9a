"""Probabilities for classifiers that give margins only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.head_pipeline import fit_weighted
from featx.heads.targets import LikeliestClass
from featx.heads.validation import checked_weights, few_images_allowed, validated_training

# Margins looked at together: of thousands of classes all at once would be most of the memory.
_CELLS = 1 << 20


class TemperatureCalibrated(LikeliestClass, ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A margin classifier with probabilities: the softmax of its margins over one temperature.

    The wrapped estimator is fitted on all rows. The temperature comes from cross-validated margins
    of copies of it.

    Parameters
    ----------
    estimator : estimator
        A classifier with ``decision_function``, for example ``LinearSVC()``.
    folds : int, default=5
        Stratified folds for the margins; fewer where the smallest class has fewer images. Classes
        with one image stay in every training part. Where fewer than two classes have two images
        there is nothing to calibrate on and the temperature is 1.

    Attributes
    ----------
    estimator_ : estimator
        The wrapped one, fitted on all rows.
    temperature_ : float
        What margins are divided by.
    n_folds_ : int
        The folds that were used, 0 where the temperature is 1 for want of images.
    classes_ : ndarray of shape (k,)
    n_features_in_ : int

    Notes
    -----
    Temperature scaling is Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    eq. 9. scikit-learn has it as ``CalibratedClassifierCV(method="temperature", ensemble=False)``,
    which does not do here for two reasons: it refuses a class with fewer images than folds, and
    on margins that separate the classes, as those of good features often do, nothing stops the
    temperature from falling (40 images in two blobs got probabilities of 1 and 1e-39).
    `fit_temperature` has the remedy.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import LinearSVC
    >>> X, y = load_iris(return_X_y=True)
    >>> head = TemperatureCalibrated(LinearSVC(random_state=0)).fit(X, y)
    >>> bool((head.predict(X) == head.estimator_.predict(X)).all())
    True
    >>> head.predict_proba(X[:1]).sum(axis=1).round(6).tolist()
    [1.0]
    """

    def __init__(self, estimator: Any, *, folds: int = 5) -> None:
        self.estimator = estimator
        self.folds = folds

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TemperatureCalibrated:
        """Fit the estimator on all rows, then the temperature on cross-validated margins."""
        X, y, self.classes_, codes = validated_training(self, X, y, dtype=[np.float64, np.float32])
        with few_images_allowed():
            weights = None if sample_weight is None else checked_weights(sample_weight, len(X))
            return self._fit(X, y, codes, weights)

    def _fit(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        codes: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
    ) -> TemperatureCalibrated:
        self.estimator_ = self._fitted_copy(X, y, weights)
        margins = np.empty((len(X), len(self.classes_)))
        judged: list[NDArray[np.intp]] = []
        for train, test in calibration_splits(codes, self.folds):
            # The labels, not their codes: class weights may be a dict keyed by label.
            fold = self._fitted_copy(
                X[train], y[train], None if weights is None else weights[train]
            )
            found = _as_columns(fold.decision_function(X[test]))
            if found.shape[1] != len(self.classes_):
                raise HeadError(
                    f"{type(fold).__name__} gives {found.shape[1]} margins for "
                    f"{len(self.classes_)} classes, expected one a class: with an SVC, leave "
                    "decision_function_shape at 'ovr'"
                )
            margins[test] = found
            judged.append(test)
        self.n_folds_ = len(judged)
        rows = np.concatenate(judged) if judged else np.empty(0, dtype=np.intp)
        judged_weights = None if weights is None else weights[rows]
        self.temperature_ = (
            fit_temperature(margins[rows], codes[rows], judged_weights) if judged else 1.0
        )
        return self

    def _fitted_copy(self, X: Any, y: Any, weights: NDArray[np.float64] | None) -> Any:
        copy = clone(self.estimator)
        if weights is None:
            return copy.fit(X, y)
        fit_weighted(copy, X, y, weights)
        return copy

    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Margins of the wrapped estimator."""
        margins: NDArray[Any] = self._fitted().decision_function(self._validated(X))
        return margins

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Probabilities: the softmax of the margins over the temperature."""
        margins = _as_columns(self.decision_function(X))
        probabilities: NDArray[Any] = softmax(margins / self.temperature_, axis=1)
        return probabilities

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.estimator_

    def _validated(self, X: Any) -> NDArray[Any]:
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(X)


def fit_temperature(
    margins: NDArray[Any], codes: NDArray[np.intp], weights: NDArray[np.float64] | None = None
) -> float:
    """Give the temperature under which margins explain the labels best.

    Notes
    -----
    The target is not 1 for the right class but (n + 1) / (n + 2), the rest spread over the
    others: Platt's correction ("Probabilistic Outputs for Support Vector Machines", 1999, section
    2.2) with one count for the one number that is fitted. Without it, margins without a single
    error would make every probability 0 or 1.
    """
    rows, k = margins.shape

    def take(block: slice) -> NDArray[np.float64]:
        part: NDArray[np.float64] = margins[block].astype(np.float64)
        return part

    counts = np.ones(rows) if weights is None else weights
    n = float(counts.sum())
    if not n:
        return 1.0
    blocks = _row_blocks(rows, k)
    spread = np.concatenate(
        [np.abs(part - part.mean(axis=1, keepdims=True)).mean(axis=1) for part in map(take, blocks)]
    )
    scale = float(np.average(spread, weights=counts))
    if scale == 0 or not np.isfinite(scale):
        return 1.0
    own = margins[np.arange(rows), codes].astype(np.float64)
    others = margins.sum(axis=1, dtype=np.float64) - own
    aligned = float(counts @ ((n + 1) * own + others / (k - 1))) / (n + 2) / scale

    def loss(log_slope: float) -> float:
        slope = np.exp(log_slope)
        logs = np.concatenate(
            [logsumexp(take(block) * (slope / scale), axis=1) for block in blocks]
        )
        return float(counts @ logs - slope * aligned)

    best = minimize_scalar(loss, bounds=(-8.0, 8.0), method="bounded", options={"xatol": 1e-6})
    return float(scale * np.exp(-best.x))


def _row_blocks(rows: int, columns: int) -> list[slice]:
    step = max(1, _CELLS // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]


def calibration_splits(
    codes: NDArray[np.intp], folds: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Give the folds that margins for a temperature come from."""
    counts = np.bincount(codes)
    repeated = counts[codes] >= 2
    if np.count_nonzero(counts >= 2) < 2:
        return
    rows, single = np.flatnonzero(repeated), np.flatnonzero(~repeated)
    splitter = StratifiedKFold(min(folds, int(counts[counts >= 2].min())))
    for train, test in splitter.split(rows, codes[rows]):
        yield np.sort(np.concatenate([rows[train], single])), rows[test]


def _as_columns(margins: NDArray[Any]) -> NDArray[Any]:
    """Give two classes' single margin as the pair that one-against-the-rest would have."""
    return np.column_stack([-margins, margins]) if margins.ndim == 1 else margins
