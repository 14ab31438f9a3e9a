"""Decision rules learnt from out-of-fold probabilities: thresholds, factors, costs, coverage."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, HeadError, UnknownNameError
from featx.files.claims import missing_path_error, reading_data
from featx.files.safe_json import Json
from featx.heads.decision import BY, OPTIMISED, Decision, LabelSets, likelihoods
from featx.heads.rows import Doubles, Floats, Fold, Numbers
from featx.heads.targets import LABEL_THRESHOLD

Score: TypeAlias = Callable[[Numbers, Numbers], float]
"""What is to be best, of true and decided codes (n,), or 0 and 1 (n, k); more is better."""

_COST = "cost:"
_MOST_COSTS, _MOST_COST_BYTES = 256, 16 << 20
_SLACK = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What it costs to predict the class of a column where that of a row is true."""

    file: Path
    names: tuple[str, ...]
    matrix: Doubles  # (k, k)

    @classmethod
    def read(cls, file: Path) -> Costs:
        """Read a table whose first row and first column name the classes."""
        with reading_data(file, "a table of costs"):
            if not file.is_file():
                raise missing_path_error(file, f"no such file: {str(file)!r}")
            if file.stat().st_size > _MOST_COST_BYTES:
                raise DatasetError(f"{str(file)!r} is larger than any table of costs: refused")
            text = file.read_text("utf-8-sig")
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            lines = text.splitlines()
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(row)]
        header, *body = [[cell.strip() for cell in row] for row in rows] or [[]]
        names = tuple(header[1:])
        if not 2 <= len(names) <= _MOST_COSTS or len(set(names)) < len(names):
            raise DatasetError(
                f"expected 2 to {_MOST_COSTS} different classes in the first row of "
                f"{str(file)!r}, received {', '.join(names[:5]) or 'none'}: write a table such as "
                "true,ant,bee / ant,0,1 / bee,5,0"
            )
        costs = {}
        for name, *cells in body:
            if name not in names or name in costs or len(cells) != len(names):
                raise DatasetError(
                    f"expected a row of {len(names)} costs for each class of {str(file)!r}, "
                    f"received {name!r} with {len(cells)}: name the same classes in the first row "
                    "and in the first column, each once"
                )
            costs[name] = [_cost(file, name, cell) for cell in cells]
        if missing := [name for name in names if name not in costs]:
            raise DatasetError(
                f"{str(file)!r} has no row for {', '.join(missing[:5])}: add what it costs to "
                "predict each class where this one is true"
            )
        matrix = np.array([costs[name] for name in names])
        if not matrix.any():
            raise DatasetError(f"every cost in {str(file)!r} is 0: write what errors cost")
        return cls(file, names, matrix)

    def of(self, classes: NDArray[np.generic]) -> Doubles:
        """Return the costs (k, k) in the order of classes, or raise `DatasetError`."""
        expected = [str(name) for name in classes]
        if set(expected) != set(self.names):
            strange = sorted(set(expected) ^ set(self.names))[:5]
            raise DatasetError(
                f"the classes of {str(self.file)!r} are not those of the images: "
                f"{', '.join(strange)} only in one of the two; the images have "
                f"{', '.join(expected[:10])}"
            )
        order = [self.names.index(name) for name in expected]
        return self.matrix[np.ix_(order, order)]


def _cost(file: Path, name: str, cell: str) -> float:
    try:
        cost = float(cell)
    except ValueError:
        cost = math.nan
    if not math.isfinite(cost) or cost < 0:
        raise DatasetError(
            f"expected costs from 0 on in {str(file)!r}, received {cell!r} in the row of {name!r}: "
            "write what an error costs, and 0 where the prediction is right"
        )
    return cost


@dataclass(frozen=True, slots=True, eq=False)
class RuleOptions:
    """What is asked of a decision rule; nothing by default."""

    optimise: str = ""  # a name of `OPTIMISED`
    costs: Costs | None = None
    coverage: float | None = None
    by: str = "all"

    @classmethod
    def read(
        cls,
        optimise: str | None,
        coverage: float | None,
        coverage_by: str = "all",
        *,
        multilabel: bool = False,
        cv: int = 5,
    ) -> RuleOptions:
        """Read the arguments of `featx.train`, and check what can be checked without images."""
        costs = None
        name = optimise or ""
        if name.startswith(_COST):
            name, file = "cost", name[len(_COST) :]
            if multilabel:
                raise HeadError(
                    "costs are of classes that exclude each other, which several labels an image "
                    "do not: optimise f1 or balanced_accuracy"
                )
            costs = Costs.read(Path(file).expanduser())
        elif name == "cost":
            raise HeadError(
                "expected a table of costs, received 'cost' alone: write cost:FILE, with the path "
                "of a CSV file"
            )
        elif name and name not in OPTIMISED:
            known = (*(known for known in OPTIMISED if known != "cost"), "cost:FILE")
            raise UnknownNameError("score to optimise", name, known)
        if coverage_by not in BY:
            raise UnknownNameError("kind of coverage", coverage_by, BY)
        if coverage is not None and not 0 < coverage < 1:
            raise HeadError(
                f"expected a coverage between 0 and 1, such as 0.95, received {coverage:g}"
            )
        if coverage is None and coverage_by != "all":
            raise HeadError(
                f"a coverage by {coverage_by} needs the coverage itself: add --coverage 0.95 "
                "(coverage=0.95)"
            )
        options = cls(name, costs, coverage, coverage_by)
        if options and cv < 2:
            raise HeadError(
                f"optimise and coverage take out-of-fold probabilities, received cv={cv}: cross-"
                "validate with two folds or more, such as --cv 5 (cv=5)"
            )
        return options

    def __bool__(self) -> bool:
        """Return whether anything is asked for."""
        return bool(self.optimise) or self.coverage is not None

    def check(self, targets: NDArray[np.generic]) -> None:
        """Raise `DatasetError` where labels (n,), or 0 and 1 of several (n, k), cannot teach it."""
        if self.costs is not None:
            self.costs.of(np.unique(targets))
        if self.coverage is None:
            return
        names, counts = np.array([""]), np.array([len(targets)])
        if self.by == "class" and targets.ndim == 1:
            names, counts = np.unique(targets, return_counts=True)
        name, count = str(names[counts.argmin()]), int(counts.min())
        if _rank(count, self.coverage):
            return
        needed = math.ceil((1 / (1 - self.coverage) - 1) * (1 - 1e-9))
        what = f"of each class, {name!r} has" if name else "to train on, there are"
        lower = math.floor(100 * count / (count + 1)) / 100
        raise DatasetError(
            f"a coverage of {self.coverage:g} needs {needed} images {what} {count}: label more "
            f"images, or take a coverage of {lower:g}"
            + (", or leave --coverage-by class out" if name else "")
        )


@dataclass(frozen=True, slots=True, eq=False)
class LearntRule:
    """A decision rule, and what rules learnt without each fold make of it."""

    decision: Decision
    answers: Numbers  # of all rows, as `Decision.decide` gives them
    report: Json  # ``decision`` and ``coverage``, each where it was asked for


def learn_rule(
    options: RuleOptions,
    truth: Numbers,
    proba: Floats,
    classes: NDArray[np.generic],
    folds: Sequence[Fold],
) -> LearntRule:
    """Learn a rule from out-of-fold probabilities (n, k) of rows whose truth is known.

    The truth is codes (n,), or 0 and 1 of several labels (n, k). What is reported, and the answers,
    come from a second cross-validation: the rows of each fold are decided by a rule that was
    learnt from the other folds. A tuned rule that is no better there than the plain one is dropped.
    """
    if not np.isfinite(proba).all():
        raise HeadError(
            "the head gives probabilities that are not finite, from which no rule can be learnt: "
            "take another head, or other parameters"
        )
    report: Json = {}
    decision = _tuned(options, truth, proba, classes)
    held_out = [(test, _tuned(options, truth[rest], proba[rest], classes)) for rest, test in folds]
    plain = Decision(multilabel=truth.ndim == 2)
    answers = plain.decide(proba)
    if options.optimise:
        score = _score(options.optimise, decision)
        before = score(truth, answers)
        tuned = np.empty_like(answers)
        for test, rule in held_out:
            tuned[test] = rule.decide(proba[test])
        after = score(truth, tuned)
        # Costs are stated and not tuned: their rule is what was asked for.
        by_costs = options.optimise == "cost"
        kept = by_costs or after > before + _SLACK
        how = "out of fold" if by_costs else "each decided by a rule that was tuned on the others"
        report["decision"] = {
            "optimised": options.optimise,
            "before": _shown(options.optimise, before),
            "after": _shown(options.optimise, after),
            "kept": kept,
            "protocol": f"{len(folds)} folds, {how}",
        }
        if kept:
            answers = tuned
        else:
            decision, held_out = plain, [(test, plain) for test, _ in held_out]
    if options.coverage is not None:
        weighed = np.empty(proba.shape)
        for test, rule in held_out:
            weighed[test] = rule.weighed(proba[test])
        decision = replace(decision, sets=_learn_sets(options, truth, weighed))
        tallies = []
        for (rest, test), (_, rule) in zip(folds, held_out, strict=True):
            tested = replace(rule, sets=_learn_sets(options, truth[rest], weighed[rest]))
            tallies.append(_tally(tested, truth[test], proba[test]))
        order = np.concatenate([test for test, _ in held_out])
        parts = [np.concatenate(part) for part in zip(*tallies, strict=True)]
        report["coverage"] = {
            **_coverage(decision, truth[order], classes, *parts),
            "protocol": f"{len(folds)} folds, limits from the others",
        }
    return LearntRule(decision, answers, report)


def measure_rule(
    decision: Decision, truth: Numbers, proba: Floats, classes: NDArray[np.generic]
) -> Json:
    """Return what a rule is worth on images that it was not learnt from, as `learn_rule` does."""
    report: Json = {}
    if decision.optimised:
        score, plain = _score(decision.optimised, decision), Decision(decision.multilabel)
        report["decision"] = {
            "optimised": decision.optimised,
            "before": _shown(decision.optimised, score(truth, plain.decide(proba))),
            "after": _shown(decision.optimised, score(truth, decision.decide(proba))),
        }
    if decision.sets is not None:
        tally = _tally(decision, truth, proba)
        report["coverage"] = _coverage(decision, truth, classes, *tally)
    return report


def _tuned(
    options: RuleOptions, truth: Numbers, proba: Floats, classes: NDArray[np.generic]
) -> Decision:
    """Return the rule that is best on some rows, without sets."""
    name, several = options.optimise, truth.ndim == 2
    if not name:
        return Decision(several)
    if options.costs is not None:
        return Decision(several, "costs", options.costs.of(classes), name)
    if several:
        columns = zip(truth.T, proba.T, strict=True)
        limits = [best_threshold(label, p, name, alone=True) for label, p in columns]
        return Decision(several, "thresholds", np.array(limits), name)
    if len(classes) == 2:
        limit = best_threshold(truth, proba[:, 1], name)
        return Decision(several, "threshold", np.array([limit]), name)
    return Decision(several, "factors", best_factors(truth, proba, name), name)


def best_threshold(truth: Numbers, proba: Floats, name: str, *, alone: bool = False) -> float:
    """Return the threshold above which 1 is decided that makes a score of 0 and 1 the best.

    The score is the mean F1 of 0 and 1, with ``alone`` the F1 of 1, or the balanced accuracy. Of
    equally good thresholds the nearest to 0.5 is taken, in the middle between two probabilities.
    """
    order = np.argsort(proba, kind="stable")
    p, is_one = np.asarray(proba, np.float64)[order], truth[order] > 0
    n, ones = len(p), int(is_one.sum())
    if not 0 < ones < n:
        return LABEL_THRESHOLD
    cut = np.arange(n + 1)  # so many of the least probable are decided as 0
    missed = np.concatenate([[0], np.cumsum(is_one)])
    hits, zeros = ones - missed, cut - missed
    if name == "f1":
        values = 2 * hits / (ones + n - cut)
        if not alone:
            values = (values + 2 * zeros / (n - ones + cut)) / 2
    else:
        values = (hits / ones + zeros / (n - ones)) / 2
    low, high = np.concatenate([[0.0], p]), np.concatenate([p, [1.0]])
    values[low >= high] = -1.0
    best = np.flatnonzero(values >= values.max() - _SLACK)
    middle = (low[best] + high[best]) / 2
    # 0.5 itself where it is as good: p > 0.5 is what decides without a rule.
    middle[(low[best] <= LABEL_THRESHOLD) & (high[best] > LABEL_THRESHOLD)] = LABEL_THRESHOLD
    return float(middle[np.abs(middle - LABEL_THRESHOLD).argmin()])


_SWEEPS, _MOST_OF_ROW = 10, 12


def best_factors(truth: Numbers, proba: Floats, name: str) -> Doubles:
    """Return a factor (k,) for each class, under which the largest product decides best.

    The score is macro F1, or the balanced accuracy, over the classes that have rows.

    Notes
    -----
    Coordinate ascent: with all factors but one fixed, a row goes over to that class at one value of
    its factor, and the score is known between all of these values from one sort. It begins with
    factors of 1, or with the inverse shares of the classes where these are better, the optimum for
    balanced accuracy where the probabilities are exact (Menon et al., "On the Statistical
    Consistency of Algorithms for Binary Classification under Class Imbalance", ICML 2013). Of more
    than 12 classes, the 12 most probable of each row take part.
    """
    n, k = proba.shape
    counts = np.bincount(truth, minlength=k)
    score = _score(name, Decision())
    starts = [np.ones(k), np.where(counts > 0, n / np.maximum(counts, 1), 1.0)]
    factors = max(starts, key=lambda start: score(truth, (proba * start).argmax(axis=1)))
    width = min(k, _MOST_OF_ROW)
    columns = np.argpartition(-proba, width - 1, axis=1)[:, :width]
    top = np.take_along_axis(proba, columns, axis=1).astype(np.float64)
    cells = np.argsort(columns.ravel(), kind="stable")
    ends = np.searchsorted(columns.ravel()[cells], np.arange(k + 1))
    members = [np.divmod(cells[ends[c] : ends[c + 1]], width) for c in range(k)]
    rows = np.arange(n)
    predicted = columns[rows, (top * factors[columns]).argmax(axis=1)]
    for _ in range(_SWEEPS):
        before = factors.copy()
        for c in np.flatnonzero(counts):
            some, slot = members[c]
            products = top[some] * factors[columns[some]]
            products[np.arange(len(some)), slot] = -1.0
            others = products.argmax(axis=1)
            rival = columns[some, others]
            p = top[some, slot]
            with np.errstate(divide="ignore", invalid="ignore"):
                turns = products[np.arange(len(some)), others] / p
            able = p > 0
            rest = predicted.copy()
            rest[some] = rival
            moved = some[able], rival[able], turns[able]
            factor = _best_factor(int(c), factors[c], truth, rest, moved, counts, name)
            if factor is None:
                continue
            factors[c] = factor
            rest[moved[0]] = np.where(factor > moved[2], c, moved[1])
            predicted = rest
        if (factors == before).all():
            break
    return np.asarray(factors / np.exp(np.log(factors).mean()))


def _best_factor(
    c: int,
    now: float,
    truth: Numbers,
    rest: Numbers,
    moved: tuple[Numbers, Numbers, Doubles],
    counts: Numbers,
    name: str,
) -> float | None:
    """Return a better factor of class c than that of now, or None.

    `rest` is what is decided where nothing is decided as c; the rows that can move go over from
    their rival to c where its factor exceeds a value.
    """
    order = np.argsort(moved[2], kind="stable")
    some, rival, turns = (part[order] for part in moved)
    right, lost = truth[some] == c, truth[some] == rival
    if name == "f1":
        k = len(counts)
        hits = np.bincount(truth[rest == truth], minlength=k)
        sizes = counts + np.bincount(rest, minlength=k)
        known = counts > 0
        # Rows of one rival behind each other, in the order in which they leave it.
        group = np.argsort(rival, kind="stable")
        gone, of = np.empty(len(some), np.intp), rival[group]
        starts = np.searchsorted(of, of)
        gone[group] = np.arange(len(some)) - starts
        cumulated = np.concatenate([[0], np.cumsum(lost[group])])
        hits_gone = np.empty(len(some), np.intp)
        hits_gone[group] = cumulated[:-1] - cumulated[starts]
        size, hit = sizes[rival] - gone, hits[rival] - hits_gone
        left = 2 * (hit - lost) / np.maximum(size - 1, 1) - 2 * hit / np.maximum(size, 1)
        steps = np.where(known[rival], left, 0.0)
        gained = np.concatenate([[0], np.cumsum(right)])
        taken = 2 * (hits[c] + gained) / (sizes[c] + np.arange(len(some) + 1))
        values = taken + np.concatenate([[0.0], np.cumsum(steps)])
    else:
        shares = 1 / np.maximum(counts, 1)
        steps = shares[c] * right - shares[rival] * lost
        values = np.concatenate([[0.0], np.cumsum(steps)])
    low, high = np.concatenate([[0.0], turns]), np.concatenate([turns, [np.inf]])
    current = values[np.searchsorted(turns, now)]
    values = np.where(low < high, values, -np.inf)
    if not values.max() > current + _SLACK:
        return None
    best = np.flatnonzero(values >= values.max() - _SLACK)
    low, high = low[best], high[best]
    middle = np.where(np.isinf(high), 2 * low, np.where(low > 0, np.sqrt(low * high), high / 2))
    middle = middle[(middle > 0) & np.isfinite(middle)]
    if not middle.size:
        return None
    return float(middle[np.abs(np.log(middle / now)).argmin()])


def _score(name: str, decision: Decision) -> Score:
    """Return what a rule is to make as great as it can."""
    if decision.multilabel:
        return _f1_of_labels if name == "f1" else _balanced_of_labels
    costs = decision.values
    if name == "cost" and costs is not None:
        return lambda truth, answers: -float(costs[truth, answers].mean())
    return _f1 if name == "f1" else _balanced


def _shown(name: str, score: float) -> float:
    return -score if name == "cost" else score


def _f1(truth: Numbers, answers: Numbers) -> float:
    k = int(max(truth.max(), answers.max())) + 1
    sizes = np.bincount(truth, minlength=k) + np.bincount(answers, minlength=k)
    hits = np.bincount(truth[truth == answers], minlength=k)
    present = np.bincount(truth, minlength=k) > 0
    return float((2 * hits[present] / sizes[present]).mean())


def _balanced(truth: Numbers, answers: Numbers) -> float:
    counts = np.bincount(truth)
    hits = np.bincount(truth[truth == answers], minlength=len(counts))
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def _f1_of_labels(truth: Numbers, answers: Numbers) -> float:
    present = truth.any(axis=0)
    sizes = (truth + answers).sum(axis=0)[present]
    hits = (truth * answers).sum(axis=0)[present]
    return float((2 * hits / sizes).mean()) if present.any() else 0.0


def _balanced_of_labels(truth: Numbers, answers: Numbers) -> float:
    ones = truth.sum(axis=0)
    both = (ones > 0) & (ones < len(truth))
    if not both.any():
        return 0.0
    truth, answers, ones = truth[:, both], answers[:, both], ones[both]
    hits, zeros = (truth * answers).sum(axis=0), ((1 - truth) * (1 - answers)).sum(axis=0)
    return float(((hits / ones + zeros / (len(truth) - ones)) / 2).mean())


# MAPIE 1.6 gives the same limits and sets for classes, but takes an estimator with features where
# there are probabilities, refuses several labels an image, and has no coverage by class.
def _learn_sets(options: RuleOptions, truth: Numbers, weighed: Doubles) -> LabelSets:
    """Return sets with a stated coverage, from weighed probabilities (n, k) of held-out rows.

    Notes
    -----
    Sadinle, Lei, Wasserman: "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels",
    JASA 114 (2019), split-conformal: of n held-out probabilities of the true class, the limit is
    the one of rank floor((n + 1)(1 - coverage)), the least first; by class, of those of its rows
    (Mondrian; Vovk, Gammerman, Shafer: "Algorithmic Learning in a Random World", 2005). Several
    labels are covered where the truth of each is, and the least likely one decides.
    """
    coverage, k = options.coverage, weighed.shape[1]
    assert coverage is not None
    likelihood, by_class = likelihoods(truth, weighed), options.by == "class"
    if truth.ndim == 2:
        columns = list(likelihood.T) if by_class else [likelihood.min(axis=1)]
    else:
        columns = [likelihood[truth == c] for c in range(k)] if by_class else [likelihood]
    least = np.resize([_limit(column, coverage) for column in columns], k)
    return LabelSets(coverage, options.by, least, len(truth))


def _rank(n: int, coverage: float) -> int:
    # Rounded, since (n + 1)(1 - 0.9) of nine rows is below 1.
    return math.floor((n + 1) * (1 - coverage) + 1e-9)


def _limit(likelihood: Doubles, coverage: float) -> float:
    rank = _rank(len(likelihood), coverage)
    return float(np.partition(likelihood, rank - 1)[rank - 1]) if rank else 0.0


def _tally(
    rule: Decision, truth: Numbers, proba: Floats
) -> tuple[NDArray[np.bool_], Numbers, NDArray[np.bool_]]:
    """Return what is covered, the sizes of the sets, and which images are unsure."""
    sizes = rule.label_sets(proba).sum(axis=1)
    return rule.covered(truth, proba), sizes, rule.unsure(proba)


def _coverage(
    rule: Decision,
    truth: Numbers,
    classes: NDArray[np.generic],
    covered: NDArray[np.bool_],
    sizes: Numbers,
    unsure: NDArray[np.bool_],
) -> Json:
    """Return the figures of sets as JSON types."""
    sets = rule.sets
    assert sets is not None
    by_class = sets.by == "class"
    whole = covered if covered.ndim == 1 or by_class else covered.all(axis=1)
    report: Json = {
        "stated": sets.coverage,
        "by": sets.by,
        "measured": float(whole.mean()),
        "set_size": float(sizes.mean()),
        "unsure": float(unsure.mean()),
        "images": len(truth),
    }
    if by_class and covered.ndim == 2:
        shares = covered.mean(axis=0).tolist()
        report["by_class"] = dict(zip(map(str, classes), shares, strict=True))
    elif by_class:
        report["by_class"] = {
            str(name): float(covered[truth == c].mean())
            for c, name in enumerate(classes)
            if (truth == c).any()
        }
    return report
