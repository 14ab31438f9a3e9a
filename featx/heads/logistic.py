"""Logistic regression that finds its own C: by featx's path solver, alone or in a search."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import BaseCrossValidator, StratifiedKFold, check_cv
from sklearn.preprocessing import StandardScaler

from featx.exceptions import HeadError
from featx.heads.estimators import ABOVE_0, CLASS_WEIGHT, Allowed, LinearScoring, WeightedClassifier
from featx.heads.logistic_path import (
    ARRAYS,
    MACHINE_SHARE,
    SCORINGS,
    LogisticPath,
    PathOptions,
    fit_logistic_path,
    unknown_setting,
)
from featx.heads.rows import Doubles, Floats, Fold, Rows
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import ClassWeight, Targets, both_columns
from featx.memory import machine_bytes

logger = logging.getLogger("featx")

# On the features as a StandardScaler leaves them, the best C is within these for 2 to 5,000
# images a class; scikit-learn's own 1e-4 to 1e4 spends half of its time beyond them.
_RANGE = (-6.0, 0.0)
# Fewer values of C are fitted to their end by a search: there is nothing to give up.
_RACE_FROM = 4
# Up to so many rows a fold costs little by itself; beyond, the scaling of all folds together moves
# no score by more than 0.001.
_FEW_ROWS = 100


def _whole(name: str, low: int) -> Allowed:
    return Allowed(name, f"a whole number above {low - 1}", kind=Integral, low=low)


class LogisticPathCV(WeightedClassifier, LinearScoring):
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

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> head = LogisticPathCV(Cs=[1e-3, 1e-2, 1e-1], racing=False).fit(X / 16, y)
    >>> head.C_, head.scores_.shape
    (0.1, (5, 3))
    """

    _allowed = (
        Allowed("tol", "a number above 0", kind=Real, low=ABOVE_0),
        _whole("max_iter", 1),
        Allowed(
            "scoring", f"one of {', '.join(SCORINGS)}", "for another, use GridSearchCV", SCORINGS
        ),
        CLASS_WEIGHT,
    )

    def __init__(
        self,
        *,
        Cs: int | ArrayLike = 13,
        cv: int | BaseCrossValidator | Iterable[Fold] = 5,
        tol: float = 1e-4,
        max_iter: int = 1000,
        class_weight: ClassWeight = None,
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

    def fit_rows(self, rows: Rows, targets: Targets) -> LogisticPathCV:
        """Choose C on folds of rows in memory, and fit all of them at the best."""
        X = rows.gather()
        self.classes_, self.n_features_in_, self.Cs_ = targets.names, rows.width, self._grid()
        options = PathOptions(
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            class_weight=self.class_weight,
            scoring=self.scoring,
            racing=bool(self.racing),
            refit=True,
        )
        path = fit_logistic_path(X, targets, self._folds(X, targets), self.Cs_, options)
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

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Return logarithms of `predict_proba`."""
        return np.asarray(log_softmax(both_columns(self.decision_function(X)), axis=1))

    def _validate_params(self) -> None:
        super()._validate_params()
        self._grid()

    def _grid(self) -> Doubles:
        if isinstance(self.Cs, Integral) and not isinstance(self.Cs, bool):
            _whole("Cs", 1).require(self.Cs)
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

    def _folds(self, X: Floats, targets: Targets) -> list[Fold]:
        codes = targets.values.astype(np.intp)
        counts = np.bincount(codes)
        if counts.min() < 2:
            lone = self.classes_.tolist()[counts.argmin()]
            raise HeadError(
                f"class {lone!r} has one row only: cross-validation "
                "needs 2 or more of each class; add images, or choose C yourself"
            )
        if not isinstance(self.cv, Integral) or isinstance(self.cv, bool):
            y = targets.shown()
            return list(check_cv(self.cv, y, classifier=True).split(X, y))
        _whole("cv", 2).require(self.cv)
        most = int(counts.min())
        if most < int(self.cv):
            logger.info("%d folds instead of %d: a class has no more rows", most, self.cv)
        splitter = StratifiedKFold(
            min(int(self.cv), most), shuffle=True, random_state=self.random_state
        )
        return list(splitter.split(codes, codes))


@swept("logistic", weighted=True)
def sweep_logistic(data: SweepData) -> Iterator[HeldOut]:
    """Measure values of C of the head ``logistic`` (see `Sweep`).

    Notes
    -----
    Beyond 100 rows all folds are standardised alike, by the rows of all of them and without their
    labels, since they share one eigenbasis; a head that is fitted by itself is standardised by its
    own rows, and so is each fold of fewer.
    """
    _require_known(data.settings)
    groups: dict[str, dict[int, LogisticRegression]] = {}
    for number, setting in enumerate(data.settings):
        alike = {**setting.get_params(), "C": None}
        groups.setdefault(repr(sorted(alike.items(), key=str)), {})[number] = setting
    for members in groups.values():
        first = next(iter(members.values()))
        # Scores at this tolerance are those of the solution to 0.002.
        tol = max(float(first.tol), 1e-5)
        chosen = {number: float(setting.C) for number, setting in members.items()}
        Cs = np.unique(list(chosen.values()))
        racing = len(Cs) >= _RACE_FROM and len(data.X) > _FEW_ROWS
        options = PathOptions(
            tol=tol,
            # Probabilities move longer than scores do.
            gap_tol=0.1 * tol,
            max_iter=int(first.max_iter),
            class_weight=first.class_weight,
            racing=racing,
        )
        for numbers, scaled in _parts(data, apart=not racing):
            some = [data.folds[number] for number in numbers]
            path = fit_logistic_path(scaled, data.targets, some, Cs, options)
            for held in _held_out(path, scaled, some, chosen):
                yield replace(held, fold=numbers[held.fold])


def _parts(data: SweepData, *, apart: bool) -> Iterator[tuple[range, Floats]]:
    """Yield numbers of folds that are solved together, and the features standardised for them."""
    X, folds = data.X, data.folds
    if len(X) <= _FEW_ROWS:
        for number, (train, _) in enumerate(folds):
            yield range(number, number + 1), StandardScaler().fit(X[train]).transform(X)
        return
    scaled = StandardScaler().fit_transform(X)
    step, memory = len(folds), machine_bytes()
    if apart and memory is not None:
        each = ARRAYS * len(X) * data.targets.columns * scaled.itemsize
        step = max(1, min(step, memory // MACHINE_SHARE // each))
    for start in range(0, len(folds), step):
        yield range(start, min(start + step, len(folds))), scaled


def _require_known(settings: Sequence[LogisticRegression]) -> None:
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
        number = int(np.searchsorted(path.Cs, C))
        stopped = bool(path.stopped[number])
        coef, intercept = path.solution(last_fitted if stopped else number)
        for fold, (_, test) in enumerate(folds):
            scores = X[test] @ coef[fold].T.astype(X.dtype) + intercept[fold].astype(X.dtype)
            scores = scores.ravel() if scores.shape[1] == 1 else scores
            shares = softmax(both_columns(scores), axis=1)
            yield HeldOut(candidate, fold, shares, stopped=stopped)
