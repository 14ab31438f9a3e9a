"""Logistic regressions for all values of C and all folds at once, along the path of rising C."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.logistic_lbfgs import Solved, minimise
from featx.heads.logistic_race import Race
from featx.heads.logistic_rows import RowBlock, Rows, has_double, host

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

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class LogisticPath:
    """Solutions for c values of C, ascending, and f folds.

    Parameters
    ----------
    Cs : ndarray of shape (c,)
    coef : list of c (ndarray of shape (f, k, d), float64, or None)
        ``k`` is 1 for two classes; None where stopped or not kept.
    intercept : list of c (ndarray of shape (f, k), float64, or None)
    scores : ndarray of shape (f, c)
        On the rows held out; NaN for a value that was stopped, and where nothing is held out.
    gradient_norm : ndarray of shape (f, c)
        Largest entry of the gradient divided by the sum of weights: what scikit-learn's
        ``lbfgs`` compares with its ``tol``. NaN where stopped.
    n_iter : ndarray of shape (f, c), intp
    converged : ndarray of shape (f, c), bool
        Whether it got there without scikit-learn.
    stopped : ndarray of shape (c,), bool
        Values of C that could no longer win, and were not fitted.
    refit : LogisticPath or None
        One C, one fold, all rows.
    """

    Cs: NDArray[np.float64]
    coef: list[NDArray[np.float64] | None]
    intercept: list[NDArray[np.float64] | None]
    scores: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    n_iter: NDArray[np.intp]
    converged: NDArray[np.bool_]
    stopped: NDArray[np.bool_]
    refit: LogisticPath | None = None

    @property
    def best(self) -> int:
        """Place of the C with the highest mean score; of equals, the smallest."""
        means = np.where(self.stopped, -np.inf, self.scores.mean(axis=0))
        # Rounded, since equal shares of right answers may differ in their last digit.
        return int(np.nanargmax(np.round(means, 12)))


def fit_logistic_path(
    X: Any,
    codes: NDArray[np.intp],
    folds: Sequence[Fold],
    *,
    Cs: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    sample_weight: NDArray[np.float64] | None = None,
    tol: float = 1e-4,
    gap_tol: float | None = None,
    max_iter: int = 1000,
    scoring: str = "accuracy",
    racing: bool = False,
    keep_coef: bool = True,
    refit: NDArray[np.float64] | None = None,
) -> LogisticPath:
    """Fit scikit-learn's multinomial logistic regression for every C and every fold.

    Notes
    -----
    Each C starts from the parabola through the last three solutions, in log C; that alone halves
    the iterations. Work is in single precision for large features, and goes on in double where
    that does not reach the tolerances. What does not converge is left to scikit-learn.

    Racing takes held-out scores to have one peak along the path, beyond noise: the path ends when
    two values of C in a row, both at least half a decade beyond the best so far, trail it by 2
    standard errors of the row-by-row difference. Tolerances are 5 times as loose.
    """
    Cs = np.asarray(Cs, np.float64)
    if Cs.ndim != 1 or not len(Cs) or not (Cs[0] > 0 and np.all(np.diff(Cs) > 0)):
        raise HeadError(f"values of C must ascend from above 0, received {Cs}: sort them")
    if scoring not in SCORINGS:
        raise HeadError(f"scoring must be one of {', '.join(SCORINGS)}, received {scoring!r}")
    wanted = 0.5 * tol if gap_tol is None else gap_tol
    aim = (
        _Aim(_RACE_TOL * tol, _RACE_TOL * tol, max_iter) if racing else _Aim(tol, wanted, max_iter)
    )
    run = _Run(X, codes, folds, weights, sample_weight, scoring)
    with run.rows.at_work():
        path = run.walk(Cs, aim, racing=racing, keep_coef=keep_coef)
        if refit is None:
            return path
        coef, intercept = path.coef[path.best], path.intercept[path.best]
        if coef is None or intercept is None:
            raise HeadError("a refit needs held-out rows to tell the best C: pass folds with them")
        everything = [(np.arange(len(codes)), np.arange(0))]
        last = _Run(X, codes, everything, refit[None], None, scoring, beside=run)
        start = coef.mean(axis=0, keepdims=True), intercept.mean(axis=0, keepdims=True)
        aim = _Aim(tol, min(_REFIT_GAP, wanted), max_iter)
        return replace(path, refit=last.walk(Cs[[path.best]], aim, start=start))


def closest_gap(X: Any, classes: int) -> float:
    """Return the smallest ``gap_tol`` of one problem on X (n, d) without a second round."""
    return _SINGLE_GAP if _is_large(X, classes) else _DOUBLE_GAP


def _is_large(X: Any, columns: int) -> bool:
    return int(X.shape[0] * max(X.shape[1], columns)) > _SMALL


@dataclass(frozen=True)
class _Aim:
    tol: float
    gap_tol: float
    max_iter: int

    def reached(self, solved: Solved) -> NDArray[np.bool_]:
        return (solved.gradient_norm <= self.tol) & (solved.gap <= self.gap_tol)


class _Run:
    """The rows, what is held out of each fold, and the walk along C."""

    def __init__(
        self,
        X: Any,
        codes: NDArray[np.intp],
        folds: Sequence[Fold],
        weights: NDArray[np.float64] | None,
        sample_weight: NDArray[np.float64] | None,
        scoring: str,
        *,
        beside: _Run | None = None,
    ) -> None:
        self.X, self.codes, self.scoring = X, codes, scoring
        self.classes = int(codes.max()) + 1
        self.masks = np.zeros((len(folds), len(codes)))
        held = np.zeros_like(self.masks)
        for fold, (train, test) in enumerate(folds):
            self.masks[fold, train] = 1.0 if weights is None else weights[fold, train]
            held[fold, test] = 1.0 if sample_weight is None else sample_weight[test]
        self.totals = self.masks.sum(axis=1)
        with np.errstate(invalid="ignore"):
            self.shares = held / held.sum(axis=1, keepdims=True)
        self.double = has_double(X)
        self.single = not self.double or _is_large(X, self.classes * len(folds))
        if beside is None:
            self.rows = self._make("float32" if self.single else "float64")
        else:
            self.rows = beside.rows.reweighted(self.masks)
        self._exact: Rows | None = None

    def _make(self, dtype: str, beside: Rows | None = None) -> Rows:
        return Rows.make(self.X, self.codes, self.classes, self.masks, dtype=dtype, beside=beside)

    def walk(
        self,
        Cs: NDArray[np.float64],
        aim: _Aim,
        *,
        racing: bool = False,
        keep_coef: bool = True,
        start: tuple[NDArray[Any], NDArray[Any]] | None = None,
    ) -> LogisticPath:
        """Solve for one C after the other, all folds at once."""
        f, c = self.masks.shape[0], len(Cs)
        path = LogisticPath(
            Cs=Cs,
            coef=[None] * c,
            intercept=[None] * c,
            scores=np.full((f, c), np.nan),
            gradient_norm=np.full((f, c), np.nan),
            n_iter=np.zeros((f, c), np.intp),
            converged=np.zeros((f, c), bool),
            stopped=np.ones(c, bool),
        )
        rows = self.rows
        W = self._encode(rows, *(start or self._priors()))
        # Coefficients and their scores at the last values of C, the latest first.
        past: list[tuple[Any, list[Any]]] = []
        race = Race(Cs, self.shares)
        for place in range(c):
            shares = _extrapolation(np.log(Cs[: place + 1]), len(past))
            if past:
                W = _combined(shares, [each[0] for each in past])
                known = [
                    _combined(shares, blocks)
                    for blocks in zip(*(each[1] for each in past), strict=True)
                ]
            else:
                known = rows.map(lambda block, W=W: block.scores(W))
            W, coef, intercept = self._solve(W, known, place, aim, path)
            known = rows.map(lambda block, W=W: block.scores(W))
            past = [(W, known), *past][:_POINTS]
            path.stopped[place] = False
            each = np.concatenate(rows.map(self._score, known), axis=1)
            path.scores[:, place] = (each * self.shares).sum(axis=1)
            path.coef[place], path.intercept[place] = coef, intercept
            if not keep_coef:
                for other in range(place + 1):
                    if other != path.best:
                        path.coef[other] = path.intercept[other] = None
            if racing and race.lost(place, each):
                break
        return path

    def _priors(self) -> tuple[NDArray[Any], NDArray[Any]]:
        f, k, _ = self.rows.shape
        shares = np.stack([np.bincount(self.codes, m, self.classes) for m in self.masks])
        logs = np.log(np.maximum(shares, 1e-2))
        own = logs[:, 1:] - logs[:, :1] if k == 1 else logs - logs.mean(axis=1, keepdims=True)
        return np.zeros((f, k, self.X.shape[1])), own

    def _encode(self, rows: Rows, coef: NDArray[Any], intercept: NDArray[Any]) -> Any:
        """Bring coefficients on the features as given into the basis of the rows."""
        basis = rows.basis
        last = intercept + coef @ host(basis.mean)
        inner = coef if basis.coordinates is None else coef @ host(basis.coordinates)
        return rows.array(np.concatenate([inner, last[..., None]], axis=-1))

    def _decode(self, rows: Rows, W: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        coef, intercept = rows.basis.coefficients(rows.xp, W)
        return host(coef).astype(np.float64), host(intercept).astype(np.float64)

    def _solve(
        self, W: Any, scores: list[Any], place: int, aim: _Aim, path: LogisticPath
    ) -> tuple[Any, Any, Any]:
        """Solve in single precision, then what is left in double, then with scikit-learn."""
        C = np.full(len(self.totals), path.Cs[place])
        solved = minimise(
            self.rows,
            W,
            scores,
            C,
            self.totals,
            tol=max(aim.tol, _SINGLE_TOL) if self.single else aim.tol,
            gap_tol=max(aim.gap_tol, _SINGLE_GAP) if self.single else aim.gap_tol,
            max_iter=aim.max_iter,
        )
        W, reached, iterations = solved.W, aim.reached(solved), solved.n_iter
        norms = solved.gradient_norm
        coef, intercept = self._decode(self.rows, W)
        if self.single and self.double and not reached.all():
            left = np.flatnonzero(~reached)
            if self._exact is None:
                self._exact = self._make("float64", beside=self.rows)
            rows = self._exact.take(left)
            W = self._encode(rows, coef[left], intercept[left])
            again = minimise(
                rows,
                W,
                rows.map(lambda block, W=W: block.scores(W)),
                C[left],
                self.totals[left],
                tol=aim.tol,
                gap_tol=aim.gap_tol,
                max_iter=aim.max_iter,
            )
            coef[left], intercept[left] = self._decode(rows, again.W)
            norms[left], reached[left] = again.gradient_norm, aim.reached(again)
            iterations[left] += again.n_iter
        path.gradient_norm[:, place], path.n_iter[:, place] = norms, iterations
        path.converged[:, place] = reached
        for fold in np.flatnonzero(~reached):
            coef[fold], intercept[fold] = self._fall_back(int(fold), path.Cs[place], aim)
        if not (reached.all() and self._exact is None):
            W = self._encode(self.rows, coef, intercept)
        return W, coef, intercept

    def _fall_back(self, fold: int, C: float, aim: _Aim) -> tuple[Any, Any]:
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
        X = host(self.X)[train].astype(np.float64)
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

    def _score(self, block: RowBlock, Z: Any) -> NDArray[Any]:
        xp = self.rows.xp
        if self.scoring == "neg_log_loss":
            _, logs = self.rows.probabilities(Z)
            return host(xp.sum(Z * block.onehot, axis=1) - logs)
        if Z.shape[1] == 1:
            return host(((Z > 0) == (block.onehot > 0))[:, 0, :]).astype(np.float64)
        return host(xp.argmax(Z, axis=1) == xp.argmax(block.onehot, axis=0)).astype(np.float64)


def _extrapolation(steps: NDArray[np.float64], points: int) -> list[float]:
    """Shares of the last values, the latest first, in the polynomial through them at the next."""
    known = steps[:-1][::-1][:points]
    ratios = [
        np.prod([(steps[-1] - other) / (here - other) for other in known if other != here])
        for here in known
    ]
    # Python numbers: those of NumPy would turn single precision into double.
    return [float(share) for share in ratios]


def _combined(shares: list[float], arrays: Any) -> Any:
    total = None
    for share, array in zip(shares, arrays, strict=True):
        total = share * array if total is None else total + share * array
    return total
