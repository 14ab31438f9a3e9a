"""Logistic regression that finds its own C: by featx's path solver, alone or in a search."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.logistic_fit import ARRAYS, MACHINE_SHARE, unknown_setting
from featx.heads.logistic_path import SCORINGS, LogisticPath, PathOptions, fit_logistic_path
from featx.heads.rows import Fold
from featx.heads.sweep import HeldOut, checked_data, core_estimators
from featx.heads.targets import LikeliestClass, Targets, both_columns
from featx.heads.validation import validated_training
from featx.memory import machine_bytes

logger = logging.getLogger("featx")

Floats: TypeAlias = NDArray[np.floating]

# On the features as a StandardScaler leaves them, the best C is within these for 2 to 5,000
# images a class; scikit-learn's own 1e-4 to 1e4 spends half of its time beyond them.
_RANGE = (-6.0, 0.0)
# Fewer values of C are fitted to their end by a search: there is nothing to give up.
_RACE_FROM = 4
# Up to so many rows a fold costs little by itself; beyond, the scaling of all folds together moves
# no score by more than 0.001.
_FEW_ROWS = 100


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
        """Choose C on folds of features (n, d) and labels (n,), and fit all rows at the best.

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        self._validate_params()
        X, y, self.classes_, codes = validated_training(self, X, y, dtype=[np.float64, np.float32])
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        self.Cs_ = self._grid()
        options = PathOptions(
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            class_weight=self.class_weight,
            scoring=self.scoring,
            racing=bool(self.racing),
            refit=True,
        )
        targets = Targets("classes", self.classes_, codes, weights)
        path = fit_logistic_path(X, targets, self._folds(X, y, codes), self.Cs_, options)
        refit = path.refit
        assert refit is not None
        self.scores_, self.stopped_ = path.scores, path.stopped
        self.C_ = float(self.Cs_[path.best])
        coef, intercept = refit.solution(0)
        self.coef_, self.intercept_ = coef[0].astype(X.dtype), intercept[0].astype(X.dtype)
        self.n_iter_ = int(refit.n_iter[0, 0])
        self.gradient_norm_ = float(refit.gradient_norm[0, 0])
        self.converged_ = bool(refit.converged.all() and path.converged[:, ~path.stopped].all())
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return linear scores: (n,) of two classes, else (n, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores: Floats = X @ self.coef_.T + self.intercept_
        return scores.ravel() if scores.shape[1] == 1 else scores

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities of shape (n, k), columns in the order of ``classes_``."""
        shares: Floats = softmax(both_columns(self.decision_function(X)), axis=1)
        return shares

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Return logarithms of `predict_proba`."""
        logs: Floats = log_softmax(both_columns(self.decision_function(X)), axis=1)
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


def _require(value: Any, name: str, kind: Any, *, above: float) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value > above:
        number = "a whole number" if kind is Integral else "a number"
        raise HeadError(f"{name} must be {number} above {above:g}, received {value!r}")


def sweep_logistic(
    X: Floats,
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: Floats | None = None,
) -> Iterator[HeldOut]:
    """Measure values of C of the head ``logistic`` (see `Sweep`).

    Notes
    -----
    Beyond 100 rows all folds are standardised alike, by the rows of all of them and without their
    labels, since they share one eigenbasis; a head that is fitted by itself is standardised by its
    own rows, and so is each fold of fewer.
    """
    X, y = checked_data(X, y, folds, sample_weight)
    settings = core_estimators("logistic", candidates, seed=seed)
    _require_known(settings)
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    targets = Targets.of_classes(y, weights)
    groups: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        alike = {**setting.get_params(), "C": None}
        groups.setdefault(repr(sorted(alike.items(), key=str)), []).append(number)
    for members in groups.values():
        first = settings[members[0]]
        # Scores at this tolerance are those of the solution to 0.002.
        tol = max(float(first.tol), 1e-5)
        Cs = np.unique([float(settings[number].C) for number in members])
        racing = len(Cs) >= _RACE_FROM and len(X) > _FEW_ROWS
        options = PathOptions(
            tol=tol,
            # Probabilities move longer than scores do.
            gap_tol=0.1 * tol,
            max_iter=int(first.max_iter),
            class_weight=first.class_weight,
            racing=racing,
        )
        for numbers, scaled in _parts(X, y, folds, apart=not racing):
            some = [folds[number] for number in numbers]
            path = fit_logistic_path(scaled, targets, some, Cs, options)
            for held in _held_out(path, scaled, some, {n: settings[n].C for n in members}):
                yield replace(held, fold=numbers[held.fold])


def _parts(
    X: Floats, y: NDArray[np.intp], folds: Sequence[Fold], *, apart: bool
) -> Iterator[tuple[range, Floats]]:
    """Yield numbers of folds that are solved together, and the features standardised for them."""
    if len(X) <= _FEW_ROWS:
        for number, (train, _) in enumerate(folds):
            yield range(number, number + 1), StandardScaler().fit(X[train]).transform(X)
        return
    scaled = StandardScaler().fit_transform(X)
    step, memory = len(folds), machine_bytes()
    if apart and memory is not None:
        each = ARRAYS * len(X) * (int(y.max()) + 1) * scaled.itemsize
        step = max(1, min(step, memory // MACHINE_SHARE // each))
    for start in range(0, len(folds), step):
        yield range(start, min(start + step, len(folds))), scaled


def _require_known(settings: Sequence[Any]) -> None:
    for setting in settings:
        unknown = unknown_setting(setting)
        if unknown is not None:
            name, value, usual = unknown
            raise HeadError(
                f"logistic with {name}={value!r} has no shortcut: leave {name} at {usual!r}"
            )


def _held_out(
    path: LogisticPath, X: Floats, folds: Sequence[Fold], chosen: Mapping[int, float]
) -> Iterator[HeldOut]:
    """Yield what each chosen C says of the rows held out; a stopped one says what the last does."""
    last_fitted = int(np.flatnonzero(~path.stopped).max())
    for candidate, C in chosen.items():
        number = int(np.searchsorted(path.Cs, float(C)))
        stopped = bool(path.stopped[number])
        coef, intercept = path.solution(last_fitted if stopped else number)
        for fold, (_, test) in enumerate(folds):
            scores = X[test] @ coef[fold].T.astype(X.dtype) + intercept[fold].astype(X.dtype)
            scores = scores.ravel() if scores.shape[1] == 1 else scores
            shares = softmax(both_columns(scores), axis=1)
            yield HeldOut(candidate, fold, shares, stopped=stopped)
