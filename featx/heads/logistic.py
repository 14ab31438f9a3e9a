"""Logistic regression that finds its own C, by featx's path solver."""

from __future__ import annotations

import logging
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.logistic_path import SCORINGS, Fold, fit_logistic_path
from featx.heads.targets import LikeliestClass
from featx.heads.validation import validated_training

logger = logging.getLogger("featx")

# On the features as a StandardScaler leaves them, the best C is within these for 2 to 5,000
# images a class; scikit-learn's own 1e-4 to 1e4 spends half of its time beyond them.
_RANGE = (-6.0, 0.0)


class LogisticPathCV(LikeliestClass, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression (L2) whose C is chosen by cross-validation.

    The objective is that of scikit-learn's ``LogisticRegression``; all folds are solved at once
    along the path of rising C, see `fit_logistic_path`.

    Parameters
    ----------
    Cs : int or array-like of float, default=13
        Values of C; a number of them means so many from 1e-6 to 1, evenly in the logarithm,
        which suits standardised features.
    cv : int, splitter or iterable of (train, test), default=5
        A number of folds, with classes in equal shares and rows shuffled; fewer where the
        smallest class has fewer rows, but at least 2.
    tol : float, default=1e-4
        Largest entry of the gradient, divided by the sum of weights, at which a problem is
        solved; a tenth of it bounds the objective's estimated relative distance from its minimum.
    max_iter : int, default=1000
        Iterations a problem; one that needs more is left to scikit-learn, and a warning logged.
    class_weight : dict or "balanced", default=None
        As in ``LogisticRegression``; ``"balanced"`` counts the training rows of each fold.
    scoring : {"accuracy", "neg_log_loss"}, default="accuracy"
        What is best on the rows held out, which count by their sample weight.
    racing : bool, default=True
        Leave out the values of C beyond the best that can no longer win, and compare the others
        at 5 times the tolerance. The refit is at the full one.
    random_state : int, default=0
        Seed of the folds.

    Attributes
    ----------
    C_ : float
        The best; of equals, the smallest.
    Cs_ : ndarray of shape (c,)
        Ascending.
    scores_ : ndarray of shape (f, c)
        NaN for values that were stopped.
    stopped_ : ndarray of shape (c,), bool
        Values that could no longer win.
    coef_ : ndarray of shape (k, d), or (1, d) for two classes
        Fitted on all rows at ``C_``.
    intercept_ : ndarray of shape (k,), or (1,) for two classes
    classes_ : ndarray of shape (k,)
    n_iter_ : int
        Iterations of the refit.
    converged_ : bool
        Whether the refit and all folds converged without scikit-learn.
    gradient_norm_ : float
        Of the refit, comparable with ``tol``.
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> head = LogisticPathCV(Cs=[1e-3, 1e-2, 1e-1], racing=False).fit(X / 16, y)
    >>> head.C_, head.scores_.shape
    (0.1, (5, 3))
    """

    def __init__(
        self,
        *,
        Cs: Any = 13,
        cv: Any = 5,
        tol: float = 1e-4,
        max_iter: int = 1000,
        class_weight: Any = None,
        scoring: str = "accuracy",
        racing: bool = True,
        random_state: int | None = 0,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.scoring = scoring
        self.racing = racing
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticPathCV:
        """Choose C on the folds, and fit all rows at the best."""
        self._validate_params()
        X, y, self.classes_, codes = validated_training(self, X, y, dtype=[np.float64, np.float32])
        own = None
        if sample_weight is not None:
            own = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.Cs_ = self._grid()
        folds = self._folds(X, y, codes)
        everything = [(np.arange(len(X)), np.arange(0))]
        every = self._weights(y, own, everything)
        path = fit_logistic_path(
            X,
            codes,
            folds,
            Cs=self.Cs_,
            weights=self._weights(y, own, folds),
            sample_weight=own,
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            scoring=self.scoring,
            racing=bool(self.racing),
            keep_coef=False,
            refit=np.ones(len(X)) if every is None else every[0],
        )
        self.scores_, self.stopped_ = path.scores, path.stopped
        self.C_ = float(self.Cs_[path.best])
        last = path.refit
        if last is None or last.coef[0] is None or last.intercept[0] is None:
            raise HeadError("no fold holds out a row: expected folds as (train, test) row numbers")
        self.coef_ = last.coef[0][0].astype(X.dtype)
        self.intercept_ = last.intercept[0][0].astype(X.dtype)
        self.n_iter_ = int(last.n_iter[0, 0])
        self.gradient_norm_ = float(last.gradient_norm[0, 0])
        self.converged_ = bool(last.converged.all() and path.converged[:, ~path.stopped].all())
        return self

    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Linear scores."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores: NDArray[Any] = X @ self.coef_.T + self.intercept_
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Return probabilities of shape (n, k), columns in the order of ``classes_``."""
        from scipy.special import expit, softmax

        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        shares: NDArray[Any] = softmax(scores, axis=1)
        return shares

    def predict_log_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Return logarithms of `predict_proba`."""
        from scipy.special import log_expit, log_softmax

        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([log_expit(-scores), log_expit(scores)], axis=1)
        logs: NDArray[Any] = log_softmax(scores, axis=1)
        return logs

    def _validate_params(self) -> None:
        _require(self.tol, "tol", Real, above=0)
        _require(self.max_iter, "max_iter", Integral, above=0)
        if self.scoring not in SCORINGS:
            raise HeadError(
                f"scoring must be one of {', '.join(SCORINGS)}, received {self.scoring!r}: for "
                "another, use GridSearchCV"
            )
        if not (
            self.class_weight is None
            or isinstance(self.class_weight, dict)
            or self.class_weight == "balanced"
        ):
            raise HeadError(
                f"class_weight must be a dict of label to weight, 'balanced' or None, received "
                f"{self.class_weight!r}"
            )
        self._grid()

    def _grid(self) -> NDArray[np.float64]:
        if isinstance(self.Cs, Integral) and not isinstance(self.Cs, bool):
            _require(self.Cs, "Cs", Integral, above=0)
            return np.logspace(*_RANGE, int(self.Cs))
        try:
            values = np.unique(np.asarray(self.Cs, np.float64).ravel())
        except (TypeError, ValueError):
            values = np.empty(0)
        if not len(values) or not np.isfinite(values).all() or values[0] <= 0:
            raise HeadError(
                f"Cs must be a number of values or positive values, received {self.Cs!r}: "
                "for example Cs=13 or Cs=[0.001, 0.01, 0.1]"
            )
        return values

    def _folds(self, X: Any, y: Any, codes: NDArray[np.intp]) -> list[Fold]:
        counts = np.bincount(codes)
        if counts.min() < 2:
            lone = self.classes_.tolist()[counts.argmin()]
            raise HeadError(
                f"class {lone!r} has one row only: cross-validation "
                "needs 2 or more of each class; add images, or choose C yourself"
            )
        if not isinstance(self.cv, Integral) or isinstance(self.cv, bool):
            return list(check_cv(self.cv, y, classifier=True).split(X, y))
        _require(self.cv, "cv", Integral, above=1)
        wanted = int(self.cv)
        number = min(wanted, int(counts.min()))
        if number < wanted:
            logger.info("%d folds instead of %d: a class has no more rows", number, wanted)
        splitter = StratifiedKFold(number, shuffle=True, random_state=self.random_state)
        return list(splitter.split(codes, codes))

    def _weights(
        self, y: NDArray[Any], own: NDArray[np.float64] | None, folds: list[Fold]
    ) -> NDArray[np.float64] | None:
        """Weights (f, n) in the loss; None where all are 1."""
        if own is None and self.class_weight is None:
            return None
        weights = np.tile(np.ones(len(y)) if own is None else own, (len(folds), 1))
        if self.class_weight is not None:
            for fold, (train, _) in enumerate(folds):
                present = np.unique(y[train])
                by_class = compute_class_weight(
                    self.class_weight,
                    classes=present,
                    y=y[train],
                    sample_weight=None if own is None else own[train],
                )
                weights[fold, train] *= by_class[np.searchsorted(present, y[train])]
        return weights


def _require(value: Any, name: str, kind: Any, *, above: float) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value > above:
        number = "a whole number" if kind is Integral else "a number"
        raise HeadError(f"{name} must be {number} above {above:g}, received {value!r}")
