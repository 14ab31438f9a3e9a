"""Several heads whose probabilities are averaged, each on columns of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.estimators import checked_weights
from featx.heads.learning import fit_weighted
from featx.heads.rows import Doubles, Floats
from featx.heads.table import learns_label_sets
from featx.heads.targets import LABEL_THRESHOLD, best_labels

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Columns of features, as the first and the one behind the last of each range."""


class Ensemble(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The weighted mean of the probabilities of several classifiers.

    Parameters
    ----------
    members : sequence of (estimator, ranges)
        Classifiers with ``predict_proba``, and the columns that each learns from: pairs of the
        first column and the one behind the last.
    weights : sequence of float
        What each counts; they add up to 1.

    Attributes
    ----------
    members_ : list of estimator
        Fitted.
    classes_ : ndarray of shape (k,)

    See Also
    --------
    choose_weights : The weights of Caruana's ensemble selection.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X = np.array([[0.0, 1.0], [0.2, 0.9], [1.0, 0.1], [0.9, 0.0]])
    >>> members = [(LogisticRegression(), ((0, 2),)), (GaussianNB(), ((1, 2),))]
    >>> head = Ensemble(members, [0.5, 0.5]).fit(X, ["ant", "ant", "bee", "bee"])
    >>> head.predict([[0.1, 1.0]]).tolist()
    ['ant']
    """

    def __init__(self, members: Sequence[tuple[Any, Ranges]], weights: Sequence[float]) -> None:
        self.members = members
        self.weights = weights

    @property
    def learns_label_sets(self) -> bool:
        """Whether an image may have any number of labels."""
        return any(learns_label_sets(estimator) for estimator, _ in self.members)

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Ensemble:
        """Fit every member on its columns of features (n, d), rows weighted by (n,).

        Raises
        ------
        HeadError
            If there is no member, or not one weight each; or as the members raise it.
        """
        if not len(self.members) or len(self.weights) != len(self.members):
            raise HeadError(
                f"expected members and a weight each, received {len(self.members)} members and "
                f"{len(self.weights)} weights"
            )
        rows = validate_data(self, X, dtype=[np.float32, np.float64])
        self.members_ = []
        for estimator, ranges in self.members:
            member, columns = clone(estimator), columns_of(rows, ranges)
            if sample_weight is None:
                member.fit(columns, y)
            else:
                fit_weighted(member, columns, y, checked_weights(sample_weight, len(rows)))
            self.members_.append(member)
        self.classes_ = self.members_[0].classes_
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of each class or label, shape (n, k)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        each = zip(self.members_, self.members, self.weights, strict=True)
        return np.asarray(
            sum(
                weight * member.predict_proba(columns_of(rows, ranges))
                for member, (_, ranges), weight in each
            )
        )

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return labels (n,) of the highest probability, or 0 and 1 a label (n, k)."""
        proba = self.predict_proba(X)
        if self.learns_label_sets:
            return (proba > LABEL_THRESHOLD).astype(np.intp)
        return best_labels(proba, self.classes_)


def columns_of(X: Floats, ranges: Ranges) -> Floats:
    """Return some columns, side by side."""
    if len(ranges) == 1:
        first, behind = ranges[0]
        return X if (first, behind) == (0, X.shape[1]) else X[:, first:behind]
    return np.concatenate([X[:, first:behind] for first, behind in ranges], axis=1)


_ROUNDS = 20
_LEAST = 1e-12


def choose_weights(probabilities: Sequence[Floats], truth: NDArray[np.integer[Any]]) -> Doubles:
    """Return what members count, (m,), so that their mean explains the truth best.

    Parameters
    ----------
    probabilities : sequence of ndarray of shape (n, k)
        What each member says of rows that it has not seen.
    truth : ndarray of shape (n,) or (n, k)
        The classes of the rows, or labels of 0 and 1.

    Notes
    -----
    Greedy selection with replacement, of the member that lowers the log loss of the mean most:
    Caruana, Niculescu-Mizil, Crew, Ksikes, "Ensemble selection from libraries of models", ICML
    2004. The round with the lowest loss is taken; of equal ones, the earliest.
    """
    # Only what the truth is given counts: (n,) a member, or (n, k) of labels.
    if truth.ndim == 1:
        given = [proba[np.arange(len(truth)), truth] for proba in probabilities]
    else:
        given = [np.where(truth > 0, proba, 1 - proba) for proba in probabilities]
    total, chosen, losses = np.zeros_like(given[0], np.float64), [], []
    for number in range(1, _ROUNDS + 1):
        each = [-np.log(np.maximum((total + p) / number, _LEAST)).mean() for p in given]
        best = int(np.argmin(each))
        total += given[best]
        chosen.append(best)
        losses.append(each[best])
    rounds = int(np.argmin(losses)) + 1
    return np.bincount(chosen[:rounds], minlength=len(given)) / rounds
