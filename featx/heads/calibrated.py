"""Probabilities for classifiers that give margins only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.base import MetaEstimatorMixin, clone
from sklearn.model_selection import KFold, StratifiedKFold

from featx.exceptions import HeadError
from featx.heads.estimators import WeightedClassifier
from featx.heads.learning import fit_rows
from featx.heads.ridge import fit_ridge_left_out, fits_labels_at_once
from featx.heads.rows import Doubles, Floats, Fold, Numbers, Rows
from featx.heads.targets import Targets, both_columns

# Margins looked at together: of thousands of classes all at once would be most of the memory.
_CELLS = 1 << 20


class TemperatureCalibrated(MetaEstimatorMixin, WeightedClassifier):  # type: ignore[misc]
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

    def fit_rows(self, rows: Rows, targets: Targets) -> TemperatureCalibrated:
        """Fit on rows in memory or in batches, of which one fold has to do for the temperature."""
        self.classes_, self.n_features_in_ = targets.names, rows.width
        self.estimator_ = fit_rows(clone(self.estimator), rows, targets)
        splits = calibration_splits(targets.values.astype(np.intp), self.folds)
        margins, judged, self.n_folds_ = self._held_out(rows, targets, splits)
        codes = targets.values[judged].astype(np.intp)
        weights = None if targets.weights is None else targets.weights[judged]
        self.temperature_ = fit_temperature(margins, codes, weights) if self.n_folds_ else 1.0
        return self

    def fit_labels(self, rows: Rows, targets: Targets) -> tuple[list[Any], Doubles] | None:
        """Return one estimator fitted for all labels and a temperature of each, where it can."""
        if not fits_labels_at_once(self.estimator):
            return None
        shared = clone(self.estimator)
        if rows.matrix is None:
            margins, judged = fit_ridge_left_out(shared, rows, targets)
        else:
            fit_rows(shared, rows, targets)
            splits = KFold(min(self.folds, len(rows)), shuffle=True, random_state=0)
            margins, judged, _ = self._held_out(rows, targets, splits.split(np.arange(len(rows))))
        present = targets.values[judged].astype(np.intp)
        temperatures = [
            fit_temperature(np.column_stack([-label, label]), codes)
            for label, codes in zip(margins.T, present.T, strict=True)
        ]
        return [shared], np.array(temperatures)

    def _held_out(
        self, rows: Rows, targets: Targets, splits: Iterable[Fold]
    ) -> tuple[Floats, Numbers, int]:
        """Return margins of rows that a copy has not seen, their numbers, and how many folds."""
        margins: list[Floats] = [np.empty((0, targets.columns))]
        judged = [np.empty(0, dtype=np.intp)]
        for train, test in splits:
            held = rows.drawn(test, targets.columns)
            fold = fit_rows(clone(self.estimator), rows.take(train), targets.take(train))

            def score(X: Floats, fold: Any = fold) -> Floats:
                columns = both_columns(fold.decision_function(X), mirrored=True)
                if columns.shape[1] != targets.columns:
                    raise HeadError(
                        f"{type(fold).__name__} gives {columns.shape[1]} margins for "
                        f"{targets.columns} classes, expected one a class: with an SVC, leave "
                        "decision_function_shape at 'ovr'"
                    )
                return columns

            margins.append(rows.take(held).scores(score, targets.columns))
            judged.append(held)
            if rows.max_ram_bytes is not None:
                break
        return np.concatenate(margins), np.concatenate(judged), len(judged) - 1

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return margins of the wrapped estimator: (n,) of two classes, else (n, k)."""
        rows = self._matrix(X)
        return np.asarray(self.estimator_.decision_function(rows))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities (n, k): the softmax of the margins over the temperature."""
        margins = both_columns(self.decision_function(X), mirrored=True)
        return np.asarray(softmax(margins / self.temperature_, axis=1))


def fit_temperature(margins: Floats, codes: Numbers, weights: Doubles | None = None) -> float:
    """Return the temperature under which margins explain the labels best.

    Notes
    -----
    The target is not 1 for the right class but (n + 1) / (n + 2), the rest spread over the
    others: Platt's correction ("Probabilistic Outputs for Support Vector Machines", 1999, section
    2.2) with one count for the one number that is fitted. Without it, margins without a single
    error would make every probability 0 or 1.
    """
    rows, k = margins.shape

    def take(block: slice) -> Doubles:
        part: Doubles = margins[block].astype(np.float64)
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
    right = margins[np.arange(rows), codes].astype(np.float64)
    others = margins.sum(axis=1, dtype=np.float64) - right
    aligned = float(counts @ ((n + 1) * right + others / (k - 1))) / (n + 2) / scale

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


def calibration_splits(codes: Numbers, folds: int) -> Iterator[Fold]:
    """Return the folds that margins for a temperature come from."""
    counts = np.bincount(codes)
    repeated = counts[codes] >= 2
    if np.count_nonzero(counts >= 2) < 2:
        return
    rows, single = np.flatnonzero(repeated), np.flatnonzero(~repeated)
    splitter = StratifiedKFold(min(folds, int(counts[counts >= 2].min())))
    for train, test in splitter.split(rows, codes[rows]):
        yield np.sort(np.concatenate([rows[train], single])), rows[test]
