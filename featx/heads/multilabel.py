"""Images with any number of labels: one head a label, or one for all where that is the same."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.estimators import (
    ABOVE_0,
    BELOW_1,
    Allowed,
    check_labels,
    few_images_allowed,
    require_finite,
)
from featx.heads.learning import fit_labels
from featx.heads.rows import Floats, Rows
from featx.heads.targets import Targets

_THRESHOLD = Allowed(
    "threshold",
    "a number between 0 and 1",
    "0.5 is the default",
    kind=Real,
    low=ABOVE_0,
    high=BELOW_1,
)


class MultiLabelHead(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """Says of each label by itself whether an image has it.

    Parameters
    ----------
    estimator : estimator
        A classifier with ``predict_proba``; a copy is fitted for each label. For ridge without
        class weights and for `NearestNeighbours` one fit serves all labels.
    threshold : float in (0, 1), default=0.5
        The probability above which `predict` gives a label.

    Attributes
    ----------
    estimators_ : list
        One a label that varies; a single one where it serves all labels.
    varying_ : ndarray of int
        Labels that some of the images have and some have not.
    shares_ : ndarray of shape (labels,), float64
        Share of the images that have the label: 0 or 1 is the answer for one that does not vary.
    temperatures_ : ndarray
        One a varying label, where one ridge regression serves all; else empty.
    classes_ : ndarray of shape (labels,)
        Places of the labels, 0 to labels - 1.

    Notes
    -----
    Binary relevance: Tsoumakas, Katakis: "Multi-Label Classification: An Overview", International
    Journal of Data Warehousing and Mining 3 (2007).

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    >>> head = MultiLabelHead(LogisticRegression(C=100.0)).fit(X, X)
    >>> head.predict([[0.9, 0.1]]).tolist()
    [[1, 0]]
    """

    learns_label_sets = True

    def __init__(self, estimator: Any, *, threshold: float = 0.5) -> None:
        self.estimator = estimator
        self.threshold = threshold

    def fit(self, X: ArrayLike, y: ArrayLike) -> MultiLabelHead:
        """Fit on features (n, d) and labels (n, k) of 0 and 1: a copy a label, or one for all.

        Raises
        ------
        HeadError
            The data cannot be learned from, or the labels are no such matrix.
        """
        if y is None:
            raise HeadError(
                "MultiLabelHead requires y to be passed, but the target y is None: pass a matrix "
                "of shape (images, labels)"
            )
        rows = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False)
        require_finite(rows)
        with few_images_allowed():
            return self.fit_rows(Rows.of(rows), Targets.of_labels(check_labels(y, len(rows))))

    def fit_rows(self, rows: Rows, targets: Targets) -> MultiLabelHead:
        """Fit on rows in memory or in batches."""
        self._validate_params()
        self.classes_, self.n_features_in_ = targets.names, rows.width
        counts = targets.values.sum(axis=0, dtype=np.intp)
        self.shares_ = counts / len(targets)
        self.varying_ = np.flatnonzero((counts > 0) & (counts < len(targets)))
        varying = (
            targets if len(self.varying_) == targets.columns else targets.labels(self.varying_)
        )
        self.estimators_, self.temperatures_ = fit_labels(self.estimator, rows, varying)
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of each label, (n, k); rows need not sum to 1."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        probabilities = np.tile(self.shares_, (len(rows), 1))
        if self.temperatures_.size:
            margins = self.estimators_[0].decision_function(rows)
            # Two margins, one the other's negative, as a softmax over the temperature sees them.
            probabilities[:, self.varying_] = expit(2 * margins / self.temperatures_)
        elif len(self.estimators_) == len(self.varying_):
            for label, estimator in zip(self.varying_, self.estimators_, strict=True):
                probabilities[:, label] = estimator.predict_proba(rows)[:, 1]
        else:
            columns = [p[:, 1] for p in self.estimators_[0].predict_proba(rows)]
            probabilities[:, self.varying_] = np.column_stack(columns)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Return 1 where a label is more probable than the threshold, (n, k)."""
        return (self.predict_proba(X) > self.threshold).astype(np.intp)

    def _validate_params(self) -> None:
        _THRESHOLD.require(self.threshold)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.classifier_tags.multi_class = False
        tags.target_tags.single_output = False
        tags.target_tags.multi_output = True
        return tags
