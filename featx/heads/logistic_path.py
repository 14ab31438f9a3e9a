"""Logistic regressions for all values of C and all folds at once, along the path of rising C."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.logistic_solver import (
    Aim,
    Block,
    Blocks,
    Workers,
    log_odds,
    minimise,
    probabilities,
)
from featx.heads.rows import Doubles, Floats, Fold, Numbers
from featx.heads.targets import ClassWeight, Targets

logger = logging.getLogger("featx")

SCORINGS = ("accuracy", "neg_log_loss")

# Below this many numbers double precision costs nothing that anybody notices.
_SMALL = 1 << 20
# What sums over thousands of rows in single precision can be trusted to; the gap goes with the
# square of the gradient.
_SINGLE_TOL = 5e-7
_SINGLE_GAP, _DOUBLE_GAP = 2e-7, 1e-9
_RACE_TOL = 5.0
# Solutions that the start at the next C is extrapolated from.
_POINTS = 3
# The refit is one problem, and its objective is to be exact to 1e-5.
_REFIT_GAP = 1e-6
# A value of C has lost when it trails the best by so many standard errors of the difference.
_LOST_ERRORS = 2.0
_LOST_RATIO = 10**0.5


@dataclass(frozen=True)
class PathOptions:
    """How a path is walked.

    ``gap_tol`` is half of ``tol`` where it is None; see `Aim` for both. ``class_weight`` counts in
    each fold's training rows. ``refit`` asks for all rows at the best C, whose coefficients alone
    are kept.
    """

    tol: float = 1e-4
    gap_tol: float | None = None
    max_iter: int = 1000
    class_weight: ClassWeight = None
    scoring: str = "accuracy"
    racing: bool = False
    refit: bool = False

    def aim(self, *, refit: bool = False) -> Aim:
        """Return where the problems of folds end, or the one of all rows."""
        gap = 0.5 * self.tol if self.gap_tol is None else self.gap_tol
        if refit:
            return Aim(self.tol, min(_REFIT_GAP, gap), self.max_iter)
        if self.racing:
            return Aim(_RACE_TOL * self.tol, _RACE_TOL * self.tol, self.max_iter)
        return Aim(self.tol, gap, self.max_iter)


@dataclass(frozen=True)
class LogisticPath:
    """Solutions for c values of C, ascending, and f folds."""

    Cs: Doubles
    scores: Doubles  # (f, c), on the rows held out; NaN where stopped, or nothing is held out
    # (f, c), the largest entry of the gradient over the sum of weights: what scikit-learn's
    # ``lbfgs`` compares with its ``tol``. NaN where stopped.
    gradient_norm: Doubles
    n_iter: Numbers
    converged: NDArray[np.bool_]  # (f, c), whether it got there without scikit-learn
    stopped: NDArray[np.bool_]  # (c,), values of C that could no longer win, and were not fitted
    # Of each C (f, k, d) and (f, k), k being 1 for two classes; None where stopped or not kept.
    coef: list[Doubles | None]
    intercept: list[Doubles | None]
    refit: LogisticPath | None = None  # one C, one fold, all rows

    @classmethod
    def unfitted(cls, Cs: Doubles, folds: int) -> LogisticPath:
        """Return a path on which nothing has been solved."""
        shape = folds, len(Cs)
        return cls(
            Cs,
            scores=np.full(shape, np.nan),
            gradient_norm=np.full(shape, np.nan),
            n_iter=np.zeros(shape, np.intp),
            converged=np.zeros(shape, bool),
            stopped=np.ones(len(Cs), bool),
            coef=[None] * len(Cs),
            intercept=[None] * len(Cs),
        )

    @property
    def best(self) -> int:
        """Number of the C with the highest mean score; of equals, the smallest."""
        means = np.where(self.stopped, -np.inf, self.scores.mean(axis=0))
        # Rounded, since equal shares of right answers may differ in their last digit.
        return int(np.nanargmax(np.round(means, 12)))

    def solution(self, number: int) -> tuple[Doubles, Doubles]:
        """Return coefficients (f, k, d) and intercepts (f, k) at a C that was fitted and kept."""
        coef, intercept = self.coef[number], self.intercept[number]
        assert coef is not None
        assert intercept is not None
        return coef, intercept


def fit_logistic_path(
    X: Floats,
    targets: Targets,
    folds: Sequence[Fold],
    Cs: Doubles,
    options: PathOptions = PathOptions(),
) -> LogisticPath:
    """Fit scikit-learn's multinomial logistic regression for every C, ascending, and every fold.

    Notes
    -----
    Each C starts from the parabola through the last three solutions, in log C; that alone halves
    the iterations. Work is in single precision for large features, and goes on in double where
    that does not reach the tolerances. What does not converge is left to scikit-learn.

    Racing takes held-out scores to have one peak along the path, beyond noise: the path ends when
    two values of C in a row, both at least half a decade beyond the best so far, trail it by 2
    standard errors of the row-by-row difference. Tolerances are 5 times as loose.
    """
    walk = _Walk(X, targets, folds, options)
    if options.refit and np.isnan(walk.shares).any():
        raise HeadError("a fold holds out no row: expected folds as (train, test) row numbers")
    with walk.rows.workers.at_work():
        path = walk.along(Cs, options.aim())
        if not options.refit:
            return path
        everything = [(np.arange(len(targets)), np.arange(0))]
        last = _Walk(X, targets, everything, replace(options, racing=False, refit=False), walk.rows)
        start = path.solution(path.best)
        refit = last.along(Cs[[path.best]], options.aim(refit=True), start=start)
        return replace(path, refit=refit)


def closest_gap(X: Floats, classes: int) -> float:
    """Return the smallest ``gap_tol`` of one problem on X (n, d) without a second round."""
    return _SINGLE_GAP if _is_large(X, classes) else _DOUBLE_GAP


def _is_large(X: Floats, columns: int) -> bool:
    return int(X.shape[0] * max(X.shape[1], columns)) > _SMALL


class _Walk:
    """The rows, what is held out of each fold, and the walk along C."""

    def __init__(
        self,
        X: Floats,
        targets: Targets,
        folds: Sequence[Fold],
        options: PathOptions,
        rows: Blocks | None = None,
    ) -> None:
        self.X, self.options = X, options
        self.codes, self.classes = targets.values.astype(np.intp), targets.columns
        weights = np.ones(len(targets)) if targets.weights is None else targets.weights
        self.masks = np.zeros((len(folds), len(targets)))
        held = np.zeros_like(self.masks)
        for fold, (train, test) in enumerate(folds):
            counting = train[weights[train] > 0]
            present, codes = np.unique(self.codes[counting], return_inverse=True)
            part = Targets("classes", targets.names[present], codes, weights[counting])
            part = part.with_class_weight(options.class_weight)
            self.masks[fold, counting] = part.counted(np.arange(len(counting)))
            held[fold, test] = weights[test]
        self.totals = self.masks.sum(axis=1)
        with np.errstate(invalid="ignore"):
            self.shares = held / held.sum(axis=1, keepdims=True)
        self.single = _is_large(X, self.classes * len(folds))
        self.workers = Workers() if rows is None else rows.workers
        if rows is None:
            self.rows = self._make("float32" if self.single else "float64")
        else:
            self.rows = rows.reweighted(self.masks)
        self._exact: Blocks | None = None

    def _make(self, dtype: str) -> Blocks:
        return Blocks.make(
            self.X, self.codes, self.classes, self.masks, dtype=dtype, workers=self.workers
        )

    def along(
        self, Cs: Doubles, aim: Aim, *, start: tuple[Doubles, Doubles] | None = None
    ) -> LogisticPath:
        """Return the solutions for one C after the other, all folds at once."""
        path = LogisticPath.unfitted(Cs, len(self.masks))
        rows = self.rows
        if start is None:
            W = rows.encoded(*self._priors())
        else:
            W = rows.encoded(*(part.mean(axis=0, keepdims=True) for part in start))
        scores = rows.scores(W)
        # Coefficients and their scores at the last values of C, the latest first.
        past: list[tuple[Floats, list[Floats]]] = []
        race = _Race(Cs, self.shares)
        for number in range(len(Cs)):
            if past:
                shares = _extrapolation(np.log(Cs[: number + 1]), len(past))
                W = _combined(shares, [solution for solution, _ in past])
                blocks = zip(*(solved for _, solved in past), strict=True)
                scores = [_combined(shares, block) for block in blocks]
            W = self._solve(W, scores, number, aim, path)
            scores = rows.scores(W)
            past = [(W, scores), *past][:_POINTS]
            path.stopped[number] = False
            each = np.concatenate(rows.map(self._score, scores), axis=1)
            path.scores[:, number] = (each * self.shares).sum(axis=1)
            if self.options.refit:
                for other in range(number + 1):
                    if other != path.best:
                        path.coef[other] = path.intercept[other] = None
            if self.options.racing and race.lost(number, each):
                break
        return path

    def _priors(self) -> tuple[Doubles, Doubles]:
        """Return coefficients that say what the classes' shares in each fold say."""
        shares = np.stack([np.bincount(self.codes, mask, self.classes) for mask in self.masks])
        odds = log_odds(np.maximum(shares, 1e-2))
        return np.zeros((*odds.shape, self.X.shape[1])), odds

    def _solve(
        self, W: Floats, scores: list[Floats], number: int, aim: Aim, path: LogisticPath
    ) -> Floats:
        """Solve in single precision, then what is left in double, then with scikit-learn."""
        C = np.full(len(self.totals), path.Cs[number])
        first = aim
        if self.single:
            closest = max(aim.tol, _SINGLE_TOL), max(aim.gap_tol, _SINGLE_GAP)
            first = Aim(*closest, aim.max_iter)
        solved = minimise(self.rows, W, scores, C, self.totals, first)
        W, iterations, norms = solved.W, solved.n_iter, solved.gradient_norm
        reached = aim.reached(norms, solved.gap)
        coef, intercept = self.rows.decoded(W)
        if self.single and not reached.all():
            left = np.flatnonzero(~reached)
            if self._exact is None:
                self._exact = self._make("float64")
            rows = self._exact.take(left)
            W = rows.encoded(coef[left], intercept[left])
            again = minimise(rows, W, rows.scores(W), C[left], self.totals[left], aim)
            coef[left], intercept[left] = rows.decoded(again.W)
            norms[left] = again.gradient_norm
            reached[left] = aim.reached(again.gradient_norm, again.gap)
            iterations[left] += again.n_iter
        path.gradient_norm[:, number], path.n_iter[:, number] = norms, iterations
        path.converged[:, number] = reached
        for fold in np.flatnonzero(~reached):
            coef[fold], intercept[fold] = self._fall_back(int(fold), path.Cs[number], aim)
        path.coef[number], path.intercept[number] = coef, intercept
        if reached.all() and self._exact is None:
            return W
        return self.rows.encoded(coef, intercept)

    def _fall_back(self, fold: int, C: float, aim: Aim) -> tuple[Doubles, Doubles]:
        """Return the coefficients of one problem by scikit-learn."""
        from sklearn.linear_model import LogisticRegression

        logger.warning(
            "logistic path: fold %d at C=%.3g did not converge in %d iterations to tol=%.1e; "
            "scikit-learn solves it",
            fold,
            C,
            aim.max_iter,
            aim.tol,
        )
        train = np.flatnonzero(self.masks[fold])
        model = LogisticRegression(C=C, tol=aim.tol, max_iter=max(10_000, 20 * aim.max_iter))
        X = self.X[train].astype(np.float64)
        model.fit(X, self.codes[train], sample_weight=self.masks[fold, train])
        if len(model.classes_) == self.classes:
            return model.coef_, model.intercept_
        # A fold without some class: what is missing gets a probability of nearly nothing.
        coef = np.zeros((self.rows.shape[1], X.shape[1]))
        intercept = np.full(len(coef), -20.0)
        both = np.array([-0.5, 0.5])
        two = len(model.classes_) == 2
        coef[model.classes_] = both[:, None] * model.coef_ if two else model.coef_
        intercept[model.classes_] = both * model.intercept_ if two else model.intercept_
        return coef, intercept

    def _score(self, block: Block, Z: Floats) -> Doubles:
        """Return the score of each row (f, b)."""
        if self.options.scoring == "neg_log_loss":
            return np.asarray(-probabilities(Z, block.onehot)[1], np.float64)
        if Z.shape[1] == 1:
            right = ((Z > 0) == (block.onehot > 0))[:, 0, :]
        else:
            right = Z.argmax(axis=1) == block.onehot.argmax(axis=0)
        return np.asarray(right, np.float64)


class _Race:
    """Tells when no larger C can win any more."""

    def __init__(self, Cs: Doubles, shares: Doubles) -> None:
        self.Cs, self.shares = Cs, shares / len(shares)
        self.best: Doubles | None = None
        self.best_mean, self.bound, self.behind = -np.inf, np.inf, 0

    def lost(self, number: int, each: Doubles) -> bool:
        """Enter the scores (f, n) of the rows at the next C."""
        mean = float((each * self.shares).sum())
        if self.best is None or mean > self.best_mean:
            self.best, self.best_mean, self.behind = each, mean, 0
            self.bound = self.Cs[number] * _LOST_RATIO * (1 - 1e-9)
            return False
        lead = self.best_mean - mean
        error = float(np.sqrt(((self.best - each - lead) ** 2 * self.shares**2).sum()))
        trails = self.Cs[number] >= self.bound and lead > _LOST_ERRORS * error
        self.behind = self.behind + 1 if trails else 0
        return self.behind >= 2


def _extrapolation(steps: Doubles, points: int) -> list[float]:
    """Return shares of the last values, the latest first, in the polynomial through them."""
    known = steps[:-1][::-1][:points]
    ratios = [
        np.prod([(steps[-1] - other) / (here - other) for other in known if other != here])
        for here in known
    ]
    # Python numbers: those of NumPy would turn single precision into double.
    return [float(share) for share in ratios]


def _combined(shares: list[float], arrays: Sequence[Floats]) -> Floats:
    """Return the sum of arrays times their shares."""
    total = shares[0] * arrays[0]
    for share, array in zip(shares[1:], arrays[1:], strict=True):
        total = total + share * array
    return total
