"""Logistic regression on rows in memory: which solver, and a path of penalties by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from featx.exceptions import HeadError
from featx.heads.estimators import training_targets
from featx.heads.logistic_solver import (
    Aim,
    Basis,
    Bits,
    Block,
    Blocks,
    Workers,
    eigenvectors,
    given_coefficients,
    given_gradient,
    inner,
    log_odds,
    loss,
    minimise,
    minimise_in_lockstep,
    one_hot,
    probabilities,
    spread,
)
from featx.heads.rows import Batch, Doubles, Floats, Fold, Numbers, Rows, sampled
from featx.heads.targets import ClassWeight, Targets
from featx.memory import machine_bytes

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


# Parameters that the path solver knows, and those that do not move the solution.
_KNOWN = {"C", "class_weight", "max_iter", "tol"}
_NEUTRAL = {"n_jobs", "random_state", "verbose", "warm_start"}
_USUAL = LogisticRegression().get_params()
# Arrays of a number a row and class that the path solver needs for a problem, and the share of the
# memory for them; while it turns the rows, it holds them twice more as well.
ARRAYS, MACHINE_SHARE = 6, 4

# Shares of the bound for the sample, and of an entry of the Gram matrix while it is turned.
_SAMPLE_SHARE = 3
_SQUARES = 16
_SAMPLE_ROWS = 2048
# A pass ends the descent when the objective is within this share of its tolerance of the minimum.
_GAP = 0.01
# A penalty below this share of the curvature leaves valleys so flat that a small gradient says
# little: it has to be seen twice.
_WEAK_PENALTY = 1e-5
# Below this, sums of products in single precision are what ends it.
_STREAM_SINGLE_TOL = 1e-5
_SINGLE_NOISE, _DOUBLE_NOISE = 1e-7, 1e-13
_LEAST_SPREAD = 0.1
# A share below this is taken for it, so that its logarithm is a number.
_LEAST_SHARE = 1e-6


def fit_rows(model: LogisticRegression, rows: Rows, targets: Targets) -> list[LogisticRegression]:
    """Return the model fitted on rows; of label sets, a fitted copy for each label."""
    if rows.matrix is None:
        return _fit_passes(model, rows, targets)
    if targets.kind == "labels":
        labels = range(targets.columns)
        return [fit_rows(clone(model), rows, targets.label(label))[0] for label in labels]
    return [fit_logistic(model, rows.matrix, targets.shown(), targets.weights)]


def unknown_setting(model: LogisticRegression) -> tuple[str, object, object] | None:
    """Return a parameter that the path solver does not know, its value and the usual one."""
    for name, value in model.get_params().items():
        if name not in _KNOWN | _NEUTRAL and value != _USUAL[name]:
            return name, value, _USUAL[name]
    return None


def is_solved_by_path(model: LogisticRegression, X: object, y: object) -> bool:
    """Return whether the path solver can fit an estimator on features."""
    if type(model) is not LogisticRegression or unknown_setting(model) or model.warm_start:
        return False
    if not isinstance(X, np.ndarray) or X.dtype not in (np.float32, np.float64):
        return False
    if not 0 < model.C < np.inf:
        return False
    needed = 2 * X.nbytes + ARRAYS * len(X) * len(np.unique(np.asarray(y))) * X.itemsize
    memory = machine_bytes()
    return memory is None or needed <= memory // MACHINE_SHARE


def fit_logistic(
    model: LogisticRegression,
    X: ArrayLike,
    y: ArrayLike | None,
    sample_weight: Doubles | None = None,
) -> LogisticRegression:
    """Fit ``LogisticRegression`` as its own ``fit`` would, closer to the minimum and sooner.

    Notes
    -----
    It ends where scikit-learn's ``lbfgs`` does, the largest entry of the gradient over the sum of
    weights being at most ``tol``, and where the objective is within about 2e-7 of its minimum, or
    1e-9 for small features. What the path solver cannot do is left to scikit-learn.
    """
    if not is_solved_by_path(model, X, y):
        known = {} if sample_weight is None else {"sample_weight": sample_weight}
        return model.fit(X, y, **known)
    model._validate_params()
    rows, targets = training_targets(model, X, y, sample_weight, dtype=(np.float32, np.float64))
    tol = float(model.tol)
    options = PathOptions(
        tol=tol,
        gap_tol=min(closest_gap(rows, targets.columns), tol),
        max_iter=int(model.max_iter),
        class_weight=model.class_weight,
    )
    everything = [(np.arange(len(targets)), np.arange(0))]
    path = fit_logistic_path(rows, targets, everything, np.array([model.C], np.float64), options)
    coef, intercept = path.solution(0)
    model.classes_ = targets.names
    model.coef_, model.intercept_ = coef[0].astype(rows.dtype), intercept[0].astype(rows.dtype)
    model.n_iter_ = path.n_iter[0].astype(np.int32)
    return model


def _fit_passes(
    model: LogisticRegression, rows: Rows, targets: Targets
) -> list[LogisticRegression]:
    """Return what `fit_rows` does, from passes over batches, all labels in the same.

    Notes
    -----
    A random sample of the rows that fits into memory is solved first. Its solution is the start,
    and its Gram matrix with the mean of ``p (1 - p)`` of each class is the stand-in for the
    curvature whose inverse root the variables are scaled by; both save passes over all rows. It
    ends where scikit-learn's ``lbfgs`` does (the largest entry of the gradient over the sum of
    weights is at most ``tol``), and the estimated distance of the objective from its minimum is at
    most ``tol / 100`` of it.

    Böhning: "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992).
    """
    _require_l2(model)
    W, mean, passes = _minimum(model, rows, _class_weighted(targets, model.class_weight))
    coef, intercept = given_coefficients(W, mean)
    if targets.kind == "labels":
        heads, names = [clone(model) for _ in W], targets.label(0).names
        solutions = zip(heads, coef[:, None], intercept[:, None], strict=True)
    else:
        heads, names = [model], targets.names
        if len(W) > 1 and model.fit_intercept:
            intercept = intercept - intercept.mean()
        solutions = zip(heads, [coef], [intercept], strict=True)
    for head, lines, constants in solutions:
        head.classes_, head.n_features_in_ = names, rows.width
        head.coef_, head.intercept_ = lines.astype(np.float32), constants.astype(np.float32)
        head.n_iter_ = np.array([passes], dtype=np.int32)
    return heads


def _minimum(
    model: LogisticRegression, rows: Rows, targets: Targets
) -> tuple[Doubles, Doubles, int]:
    """Return coefficients of features less a mean, that mean, and the number of passes."""
    assert rows.max_ram_bytes is not None
    most = max(1, rows.max_ram_bytes // _SAMPLE_SHARE // (4 * rows.width))
    drawn = sampled(np.arange(rows.count), most)
    sample = rows.take(drawn).gather()
    mean = np.zeros(rows.width)
    if model.fit_intercept:
        mean = sample.mean(axis=0, dtype=np.float64)
    squares = np.einsum("ij,ij->j", sample, sample, dtype=np.float64)
    scale = float(np.sqrt(squares.max(initial=0.0) / len(sample)))
    basis = _basis(sample, mean, rows.max_ram_bytes)
    outputs = _Outputs(targets)
    start = np.zeros((len(outputs.spread), rows.width + 1))
    if model.fit_intercept:
        start[:, -1] = log_odds(outputs.shares).ravel()
    penalty = np.zeros_like(outputs.totals)
    if np.isfinite(model.C):
        penalty = 1 / (model.C * outputs.totals)
    part = outputs if len(drawn) == rows.count else _Outputs(targets.take(drawn))
    objective = _Objective(_pieces(sample), part, basis, penalty, model, scale=scale)
    W, passes = objective.descend(start)
    if part is not outputs:
        # A sample without a row of a class, or of a label, has no minimum for its intercept.
        absent = part.spread <= _LEAST_SHARE
        W[absent] = start[absent]
        # What varies in one of so many rows may well be constant in the sample.
        more = basis.curvature[:-1].mean() / len(drawn)
        basis = replace(basis, curvature=np.append(basis.curvature[:-1] + more, 1.0))
        objective = _Objective(rows, outputs, basis, penalty, model, scale=scale)
        del sample
        W, further = objective.descend(W)
        passes += further
    if not objective.converged:
        logger.warning(
            "logistic regression did not converge in %d passes to tol=%.1e: its largest gradient "
            "entry is %.1e; raise max_iter, or lower C",
            passes,
            model.tol,
            objective.norm,
        )
    return W, mean, passes


class _Outputs:
    """What a row's scores should be: of its class, one problem, or of each label, one a label."""

    def __init__(self, targets: Targets) -> None:
        self.targets, counts = targets, targets.totals()
        self.totals: Doubles = counts.sum(axis=1)
        self.shares = np.maximum(counts / self.totals[:, None], _LEAST_SHARE)
        # The means of ``p (1 - p)`` where the shares are all that is known, (lines,).
        spreads = np.maximum(self.shares * (1 - self.shares), _LEAST_SHARE)
        self.spread = (spreads[:, 1:] if spreads.shape[1] == 2 else spreads).ravel()

    def of(self, rows: Numbers) -> tuple[Bits, Doubles]:
        """Return the classes of rows (1, k, b) or their labels (p, 1, b), and what they count."""
        counted, values = self.targets.counted(rows), self.targets.values[rows]
        weights = np.ones((1, len(rows))) if counted is None else np.atleast_2d(counted.T)
        if self.targets.kind == "classes":
            return one_hot(values.astype(np.intp), self.targets.columns)[None], weights
        return np.ascontiguousarray(values.T).view(np.bool_)[:, None], weights


class _Objective:
    """The objectives over rows in batches, and the descent on all of them."""

    def __init__(
        self,
        rows: Rows,
        outputs: _Outputs,
        basis: Basis,
        penalty: Doubles,
        model: LogisticRegression,
        *,
        scale: float,
    ) -> None:
        self._rows, self._outputs, self._penalty = rows, outputs, penalty
        self._intercept = bool(model.fit_intercept)
        self._aim = Aim(model.tol, _GAP * model.tol, int(model.max_iter))
        self._kind = np.dtype(np.float32 if model.tol >= _STREAM_SINGLE_TOL * scale else np.float64)
        if basis.coordinates is not None:
            basis = replace(basis, coordinates=basis.coordinates.astype(self._kind, copy=False))
        self._basis = basis
        # The labels whose descent goes on, which only become fewer.
        self._left: tuple[int, _Outputs] = len(outputs.totals), outputs
        # Factors of the variables in which second derivatives are at most about 1.
        self._scale: Doubles | None = None
        self._is_weak = np.zeros(len(penalty), bool)
        self.norm, self.converged = np.inf, False

    def value(self, W: Doubles, which: Numbers) -> tuple[Doubles, Doubles]:
        """Return the values at W, lines of the problems numbered ``which``, and the derivatives.

        It takes one pass; the first tells the scale of the variables.
        """
        if self._left[0] != len(which):
            self._left = len(which), _Outputs(self._outputs.targets.labels(which))
        outputs, penalty = self._left[1], self._penalty[which]
        coef, centre = W[:, :-1].astype(self._kind), self._basis.mean.astype(np.float32)
        gradient, losses, spreads = np.zeros_like(W), np.zeros(len(which)), np.zeros(len(W))
        for X, numbers in self._rows.batches():
            near = (X - centre).astype(self._kind, copy=False)
            Z = (coef @ near.T).astype(np.float64) + W[:, -1:]
            onehot, weights = outputs.of(numbers)
            P, residual, part = loss(Z.reshape(len(which), -1, len(X)), onehot, weights)
            losses += part
            if self._scale is None:
                spreads += spread(P, weights).ravel()
            residual = residual.reshape(len(W), -1)
            gradient[:, :-1] += residual.astype(self._kind) @ near
            gradient[:, -1] += residual.sum(axis=1)
        if self._scale is None:
            self._scale = self._scaled(spreads / outputs.totals)
        gradient /= outputs.totals[:, None]
        gradient[:, :-1] += penalty[:, None] * W[:, :-1]
        if not self._intercept:
            gradient[:, -1] = 0
        lengths = (W[:, :-1] ** 2).sum(axis=1).reshape(len(which), -1).sum(axis=1)
        return losses / outputs.totals + 0.5 * penalty * lengths, gradient

    def _scaled(self, spreads: Doubles) -> Doubles:
        """Return inverse roots of bounds of second derivatives, (lines, d + 1)."""
        # What is rare has hardly a row in a sample, which says little of it.
        spreads = np.maximum(spreads, _LEAST_SPREAD * self._outputs.spread)
        bound = spreads[:, None] * self._basis.curvature
        curvature = bound[:, :-1].max(axis=1, initial=0.0).reshape(len(self._penalty), -1)
        self._is_weak = self._penalty < _WEAK_PENALTY * curvature.max(axis=1)
        bound[:, :-1] += self._penalty[:, None]
        scale: Doubles = 1 / np.sqrt(np.maximum(bound, 1e-12))
        return scale

    def descend(self, W: Doubles) -> tuple[Doubles, int]:
        """Return the minima from W, and the number of passes to them."""
        p, width = len(self._penalty), W.shape[1]
        norms, before = np.full(p, np.inf), np.zeros(p, bool)

        def moved(points: Doubles, lines: Numbers | slice = slice(None)) -> Doubles:
            if self._scale is None:
                return W
            move = self._scale[lines] * points.reshape(-1, width)
            return np.asarray(W[lines] + self._basis.features(move))

        def function(points: Doubles, which: Numbers) -> tuple[Doubles, Doubles, Bits]:
            lines = which if p > 1 else slice(None)
            values, gradient = self.value(moved(points, lines), which)
            assert self._scale is not None
            scaled = (self._scale[lines] * self._basis.turned(gradient)).reshape(points.shape)
            slopes = np.abs(given_gradient(gradient, self._basis.mean))
            norms[which] = slopes.reshape(len(which), -1).max(axis=1)
            # Where rows can be told apart perfectly, the value goes to nothing, and no distance
            # from the minimum is a small share of it.
            gaps = 0.5 * inner(scaled, scaled).ravel() / np.maximum(values, self._aim.tol)
            reached = self._aim.reached(norms[which], gaps)
            good = reached & (before[which] | ~self._is_weak[which])
            before[which] = reached
            return values, scaled, good

        minima = minimise_in_lockstep(
            function,
            (p, len(W) // p, width),
            most=2 * self._aim.max_iter,
            noise=_SINGLE_NOISE if self._kind == np.float32 else _DOUBLE_NOISE,
        )
        self.norm = float(norms.max())
        self.converged = bool((minima.finished | (norms <= self._aim.tol)).all())
        return moved(minima.points), minima.passes


def _class_weighted(targets: Targets, class_weight: ClassWeight) -> Targets:
    """Return targets that count by the classes of each problem, which are 0 and 1 for a label."""
    if targets.kind == "classes" or not isinstance(class_weight, Mapping):
        return targets.with_class_weight(class_weight)
    both = np.arange(2)
    factors = np.asarray(compute_class_weight(class_weight, classes=both, y=both), np.float64)
    return replace(targets, factors=np.tile(factors[:, None], targets.columns))


def _basis(sample: Floats, mean: Doubles, max_ram_bytes: int) -> Basis:
    """Return the eigenbasis of a sample's covariance, or its diagonal where that is too large."""
    width = sample.shape[1]
    if _SQUARES * width**2 > max_ram_bytes // 2:
        squares = np.einsum("ij,ij->j", sample, sample, dtype=np.float64) / len(sample)
        return Basis(mean, None, np.append(np.maximum(squares - mean**2, 0), 1.0))
    centre = mean.astype(np.float32)
    gram = np.zeros((width, width), dtype=np.float32)
    for part in np.array_split(sample, -(-len(sample) // _SAMPLE_ROWS)):
        near = part - centre
        gram += near.T @ near
    gram /= len(sample)
    values, vectors = eigenvectors(gram)
    return Basis(mean, vectors, np.append(np.maximum(values.astype(np.float64), 0), 1.0))


def _pieces(X: Floats) -> Rows:
    """Return a matrix as rows in batches so small that their scores take little memory."""

    def source(_: int | None) -> Iterator[Batch]:
        for start in range(0, len(X), _SAMPLE_ROWS):
            part = X[start : start + _SAMPLE_ROWS]
            yield part, np.arange(start, start + len(part))

    return Rows(len(X), X.shape[1], source=source)


def _require_l2(model: LogisticRegression) -> None:
    penalty, ratio = getattr(model, "penalty", "l2"), getattr(model, "l1_ratio", None)
    if penalty not in ("l2", "deprecated", None) or ratio not in (None, 0, 0.0):
        raise HeadError(
            f"logistic regression with penalty={penalty!r}, l1_ratio={ratio!r} has to see all rows "
            "at once: leave both out, for L2"
        )
    if penalty is None:
        raise HeadError("logistic regression without a penalty has to see all rows at once: set C")
