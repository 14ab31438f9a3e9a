"""Heads that learn numbers: the pipeline that they are, and regressors of one column each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featx.heads.estimators import WeightedRegressor, check_values, require_finite
from featx.heads.learning import fit_rows
from featx.heads.rows import Floats, Rows
from featx.heads.targets import Targets, value_scale
from featx.threads import worthwhile_threads


class ValuePipeline(Pipeline):  # type: ignore[misc]
    """scikit-learn's ``Pipeline`` for numbers; `fit` looks at the data before the first step does.

    A last step that is scikit-learn's ``Ridge`` is fitted by its normal equations. Parameters and
    attributes are those of ``Pipeline``.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> ValuePipeline([("head", Ridge())]).fit([[0.0], [1.0]], [3.0, 3.0])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: all 2 rows have the number 3: there is nothing to learn; ...
    """

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, **params: Any) -> ValuePipeline:
        """Fit the steps on features (n, d) and numbers, (n,) or (n, k).

        Raises
        ------
        HeadError
            The data cannot be learned from.
        """
        rows = X if isinstance(X, np.ndarray) else None
        if rows is not None and (rows.dtype not in (np.float32, np.float64) or rows.ndim != 2):
            rows = None
        with worthwhile_threads(np.asarray(X).size):
            if y is None or rows is None or params or self.memory is not None:
                if y is not None:
                    check_values(y)
                super().fit(X, y, **params)
                return self
            values = check_values(y, len(rows))
            require_finite(rows)
            fit_rows(self, Rows.of(rows), Targets.of_values(values))
        return self

    def predict(self, X: ArrayLike, **params: Any) -> Floats:
        """Return the numbers of each row: (n,) where one was learnt, else (n, k)."""
        if isinstance(X, np.ndarray):
            require_finite(X)  # trees would answer NaN
        return np.asarray(super().predict(X, **params))


class EachValue(WeightedRegressor):
    """One copy of a regressor for each column of numbers, each column scaled if wanted.

    Parameters
    ----------
    estimator : estimator
        A regressor of one number a row.
    scaled : bool, default=True
        Whether each column is brought to a mean of 0 and a deviation of 1 for the regressor.

    Attributes
    ----------
    estimators_ : list of estimator
        Fitted, one a column.
    mean_, spread_ : ndarray of shape (k,)
        What the columns were scaled by.

    Examples
    --------
    >>> from sklearn.svm import LinearSVR
    >>> head = EachValue(LinearSVR(random_state=0))
    >>> head.fit([[0.0], [1.0], [2.0]], [[1.0, 20.0], [2.0, 10.0], [3.0, 0.0]]).predict([[1.0]]).shape
    (1, 2)
    """  # noqa: E501

    def __init__(self, estimator: Any, *, scaled: bool = True) -> None:
        self.estimator = estimator
        self.scaled = scaled

    def fit_rows(self, rows: Rows, targets: Targets) -> EachValue:
        """Fit a copy on each column of values."""
        self.n_features_in_ = rows.width
        self.mean_, self.spread_ = np.zeros(targets.columns), np.ones(targets.columns)
        if self.scaled:
            self.mean_, self.spread_ = value_scale(targets)
        scaled = (targets.values - self.mean_) / self.spread_
        self.estimators_ = [
            fit_rows(
                clone(self.estimator),
                rows,
                replace(targets, names=np.arange(1), values=scaled[:, column : column + 1]),
            )
            for column in range(targets.columns)
        ]
        return self

    def _values(self, rows: Floats) -> Floats:
        columns = [estimator.predict(rows) for estimator in self.estimators_]
        values: Floats = np.column_stack(columns) * self.spread_ + self.mean_
        return values
