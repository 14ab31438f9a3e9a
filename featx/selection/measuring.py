"""Measure candidates on folds: together where their head has a sweep, in parallel otherwise."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, reason
from featx.heads.rows import Fold
from featx.heads.sweep import HeldOut, Sweep
from featx.heads.table import HEADS
from featx.heads.targets import both_columns
from featx.selection.metrics import Scorer
from featx.selection.search_space import Candidate, Place
from featx.selection.transforms import (
    Components,
    Prepared,
    Transform,
    fit_components,
    parse_transform,
)
from featx.selection.trials import Journal, Measured, Trial


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBlock:
    """One matrix of features of the dataset.

    Parameters
    ----------
    backbone, tap : str
        What it is of.
    X : ndarray of shape (n, d)
        Features.
    digest : str, default ""
        What identifies its content, for resuming.
    views : tuple of ndarray of shape (n, d)
        Features of augmented views of the same images: they are trained on, never tested on.
    ms : float, optional
        Milliseconds an image of the backbone.
    bytes : int, optional
        Size of the backbone's weights.
    cost : float, default 0.0
        Which backbone is cheaper, the same on every machine.
    """

    backbone: str
    tap: str
    X: NDArray[np.floating[Any]]
    digest: str = ""
    views: tuple[NDArray[np.floating[Any]], ...] = ()
    ms: float | None = None
    bytes: int | None = None
    cost: float = 0.0

    @property
    def place(self) -> Place:
        """Backbone and tap."""
        return self.backbone, self.tap

    def take(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return rows of the images and then of each view; no copy where it is all of one."""
        parts = [self.X, *self.views]
        if len(rows) < len(self.X):
            parts = [part[rows] for part in parts]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)


@dataclass(eq=False)
class FoldData:
    """Features and classes, cut into folds.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Features, views below the images.
    codes : ndarray of shape (n,), intp
        Classes.
    folds : list of (train, test)
        Row numbers of X.
    sizes : list of float
        Sizes of all transforms with principal components that will be asked for.
    sets : ndarray of shape (k, labels), int, optional
        Where an image has several labels, a class is a set of them: which each has.
    """

    X: NDArray[Any]
    codes: NDArray[np.intp]
    folds: list[Fold]
    sizes: list[float]
    sets: NDArray[np.intp] | None = None
    _components: dict[int, Components] = field(default_factory=dict)

    def targets(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return what heads learn of rows: classes (m,), or labels (m, labels) of 0 and 1."""
        return self.codes[rows] if self.sets is None else self.sets[self.codes[rows]]

    def prepare(self, transform: Transform, fold: int) -> Prepared:
        """Return a transform that has learnt from the training rows of one fold."""
        if transform.by_row:
            return Prepared(transform)
        if fold not in self._components:
            train = self.folds[fold][0]
            self._components[fold] = fit_components(self.X[train], self.sizes)
        return Prepared(transform, self._components[fold])

    def forget_components(self) -> None:
        """Fit principal components anew, since more are asked for."""
        self._components.clear()


def fold_data(
    block: FeatureBlock,
    rows: NDArray[np.intp],
    codes: NDArray[np.intp],
    folds: Sequence[Fold],
    *,
    share: float,
    order: NDArray[np.intp],
    sizes: list[float],
    sets: NDArray[np.intp] | None = None,
) -> FoldData:
    """Cut a block into folds."""
    copies = 1 + len(block.views)
    cut: list[Fold] = []
    for train, test in folds:
        kept = train if share >= 1 else _share_of(train, codes, order, share)
        seen = np.concatenate([kept + copy * len(rows) for copy in range(copies)])
        cut.append((seen, test))
    return FoldData(block.take(rows), np.tile(codes, copies), cut, sizes, sets)


def _share_of(
    train: NDArray[np.intp], codes: NDArray[np.intp], order: NDArray[np.intp], share: float
) -> NDArray[np.intp]:
    ranked = order[np.isin(order, train)]
    kept = []
    for code in np.unique(codes[train]):
        own = ranked[codes[ranked] == code]
        kept.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


_BATCH = 256
_REPEATS = 3
_OF_EACH_CLASS = (4, 8)


def training_cost(head: str) -> int:
    """Return which heads are to be tried first: 0 measured together, 1 one by one, 2 by Keras."""
    row = HEADS.get(head)
    if row is not None and row.sweep:
        return 0
    return 2 if row is not None and row.needs_keras else 1


def prediction_cost(head: str) -> int:
    """Return the order of what predictions cost, as the table of heads states it."""
    return HEADS[head].cost if head in HEADS else 9


def milliseconds(prepared: Prepared, head: Any, X: NDArray[Any]) -> float:
    """Return the least of three timings of transform and prediction, an image of a batch of 256."""
    batch = X[:_BATCH]
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        head.predict(prepared.apply(batch))
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1000 / len(batch)


def learnt_bytes(*parts: Any) -> int:
    """Return the bytes of all arrays that fitted objects hold, each array once."""
    seen: dict[int, Any] = {}  # with the objects themselves: an identity is used again after them
    total, waiting = 0, list(parts)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or item is None or isinstance(item, str | bytes | int | float | type):
            continue
        seen[id(item)] = item
        if isinstance(item, np.ndarray):
            total += item.nbytes
            waiting += item.ravel().tolist() if item.dtype == object else []
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        else:
            # Compiled objects, such as the trees of a forest, show their arrays here only.
            state: Any = getattr(item, "__getstate__", dict)()
            waiting += [state] if isinstance(state, dict | tuple) else []
    return total


def probe(candidate: Candidate, data: FoldData, *, seed: int) -> tuple[float, int]:
    """Measure what a head would cost, from a fit on a few rows where that is enough."""
    prepared = data.prepare(parse_transform(candidate.transform), 0)
    train, test = data.folds[0]
    several = data.sets is not None
    learnt: list[int] = []
    given: list[int] = []
    for count in _OF_EACH_CLASS:
        rows = _few(train, data.codes, count)
        Z = prepared.apply(data.X[rows])
        head = prepared.head(candidate.make(seed=seed, multilabel=several))
        head.fit(Z, data.targets(rows))
        learnt.append(learnt_bytes(head))
        given.append(Z.nbytes)
    if 2 * (learnt[1] - learnt[0]) >= given[1] - given[0] > 0:  # it keeps what it is given
        head = prepared.head(candidate.make(seed=seed, multilabel=several))
        head.fit(prepared.apply(data.X[train]), data.targets(train))
    return milliseconds(prepared, head, data.X[test]), learnt_bytes(head, prepared.learnt())


def _few(rows: NDArray[np.intp], codes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    classes = range(int(codes[rows].max()) + 1)
    return np.concatenate([rows[codes[rows] == code][:count] for code in classes])


def find_sweep(candidate: Candidate, *, probabilities: bool = False) -> Sweep | None:
    """Return the sweep of a candidate's head, where it has one that goes with the transform."""
    row = HEADS.get(candidate.head)
    # A sweep standardises as its head does: behind these transforms the head would not.
    if (
        row is None
        or not row.sweep
        or (probabilities and row.calibrated)
        or candidate.estimator is not None
        or parse_transform(candidate.transform).bare
    ):
        return None
    module, _, name = row.sweep.rpartition(".")
    sweep: Sweep = getattr(import_module(module), name)
    return sweep


def held_out_together(
    sweep: Sweep,
    candidates: Sequence[Candidate],
    data: FoldData,
    *,
    seed: int,
    probabilities: bool = False,
) -> Iterator[HeldOut]:
    """Yield what candidates that share block, transform and head say of the rows held out."""
    params = [dict(candidate.params) for candidate in candidates]
    transform = parse_transform(candidates[0].transform)
    found = 0
    for held in _swept(sweep, transform, params, data, seed):
        if probabilities and not held.probabilities:
            raise HeadError(f"the sweep of {candidates[0].head!r} gives margins, no probabilities")
        found += 1
        yield held
    if found != len(candidates) * len(data.folds):
        raise HeadError(f"the sweep of {candidates[0].head!r} left candidates out")


def _swept(
    sweep: Sweep,
    transform: Transform,
    params: Sequence[dict[str, Any]],
    data: FoldData,
    seed: int,
) -> Iterator[HeldOut]:
    if transform.by_row:
        X = data.prepare(transform, 0).apply(data.X)
        yield from sweep(X, data.codes, data.folds, params, seed=seed)
        return
    for fold, (train, test) in enumerate(data.folds):
        rows = np.concatenate([train, test])
        Z = data.prepare(transform, fold).apply(data.X[rows])
        split = np.arange(len(train)), np.arange(len(train), len(rows))
        for held in sweep(Z, data.codes[rows], [split], params, seed=seed):
            yield replace(held, fold=fold)


def measure_together(
    sweep: Sweep,
    candidates: Sequence[Candidate],
    data: FoldData,
    scorer: Scorer,
    *,
    seed: int,
) -> dict[Candidate, Measured]:
    """Measure candidates that share block, transform and head."""
    started = time.perf_counter()
    scores: dict[tuple[int, int], float] = {}
    stopped: set[int] = set()
    needed = scorer.needs == "probabilities"
    for held in held_out_together(sweep, candidates, data, seed=seed, probabilities=needed):
        truth = data.codes[data.folds[held.fold][1]]
        scores[held.candidate, held.fold] = scorer.function(truth, held.values)
        if held.stopped:
            stopped.add(held.candidate)
    folds = range(len(data.folds))
    share = (time.perf_counter() - started) / len(scores)
    return {
        candidate: Measured(
            scores=[scores[number, fold] for fold in folds],
            fit_s=[share for _ in folds],
            score_s=[0.0 for _ in folds],
            stopped=number in stopped,
        )
        for number, candidate in enumerate(candidates)
    }


@dataclass(frozen=True, slots=True)
class _Fit:
    place: int
    fold: int
    score: float = 0.0
    fit_s: float = 0.0
    score_s: float = 0.0
    ms: float | None = None
    bytes: int | None = None
    failed: str = ""


def fit_in_parallel(
    candidates: Sequence[Candidate],
    data: FoldData,
    scorer: Scorer,
    *,
    seed: int,
    n_jobs: int,
    expired: Callable[[], bool],
) -> Iterator[tuple[Candidate, Measured]]:
    """Fit candidates that share a block and a transform, and yield each when it is finished."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    transform = parse_transform(candidates[0].transform)
    prepared = [data.prepare(transform, fold) for fold in range(len(data.folds))]

    def planned() -> Iterator[Any]:
        for place, candidate in enumerate(candidates):
            if expired():
                return
            for fold in range(len(data.folds)):
                yield delayed(_fit)(place, candidate, fold, prepared[fold], data, scorer, seed)

    # Keras trains on all cores by itself, and its global state is not for several threads.
    alone = any(one.head in HEADS and HEADS[one.head].needs_keras for one in candidates)
    done: dict[int, list[_Fit]] = {}
    # One thread of linear algebra a fit, however many fits there are at a time: the sums are then
    # added up in the same order, and n_jobs changes no score.
    # Threads, since they start at once and fits leave the interpreter alone; what they change of
    # the filters of warnings, which are the process's, is undone.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        jobs = Parallel(
            n_jobs=1 if alone else n_jobs,
            backend="threading",
            return_as="generator_unordered",
            pre_dispatch="n_jobs",
            batch_size=1,
        )
        for fit in jobs(planned()):
            fits = done.setdefault(fit.place, [])
            fits.append(fit)
            if len(fits) == len(data.folds):
                yield candidates[fit.place], _joined(sorted(fits, key=lambda one: one.fold))


def _joined(fits: list[_Fit]) -> Measured:
    failed = next((fit.failed for fit in fits if fit.failed), "")
    return Measured(
        scores=[] if failed else [fit.score for fit in fits],
        fit_s=[fit.fit_s for fit in fits],
        score_s=[fit.score_s for fit in fits],
        failed=failed,
        ms=fits[0].ms,
        bytes=fits[0].bytes,
    )


def _fit(
    place: int,
    candidate: Candidate,
    fold: int,
    prepared: Any,
    data: FoldData,
    scorer: Scorer,
    seed: int,
) -> _Fit:
    train, test = data.folds[fold]
    started = time.perf_counter()
    try:
        several = data.sets is not None
        head = prepared.head(candidate.make(seed=seed, multilabel=several))
        head = uncalibrated(head) if scorer.needs == "labels" else head
        head.fit(prepared.apply(data.X[train]), data.targets(train))
        fitted = time.perf_counter()
        classes = int(data.codes.max()) + 1
        values = predicted_values(head, prepared.apply(data.X[test]), scorer, classes)
        score = scorer.function(data.targets(test), values)
        scored = time.perf_counter()
        ms = milliseconds(prepared, head, data.X[test]) if fold == 0 else None
        size = learnt_bytes(head, prepared.learnt()) if fold == 0 else None
    except Exception as error:  # heads are anybody's code: one that fails is a row, not the end
        return _Fit(place, fold, fit_s=time.perf_counter() - started, failed=reason(error))
    return _Fit(place, fold, score, fitted - started, scored - fitted, ms, size)


def uncalibrated(head: Any) -> Any:
    """Return the head that gives the same labels without probabilities, for a fifth of the time."""
    from featx.heads.calibrated import TemperatureCalibrated

    if isinstance(head, TemperatureCalibrated):
        return head.estimator
    steps = getattr(head, "steps", None)
    if steps and isinstance(steps[-1][1], TemperatureCalibrated):
        return type(head)([*steps[:-1], (steps[-1][0], steps[-1][1].estimator)])
    return head


def predicted_values(
    head: Any, X: NDArray[Any], scorer: Scorer, classes: int
) -> NDArray[np.floating[Any]]:
    """Return what a fitted head says of rows, a column a class, as a scorer needs it."""
    ways: tuple[str, ...] = ("predict_proba",)
    if scorer.needs != "probabilities":
        ways = (*ways, "decision_function")
    for way in ways:
        if hasattr(head, way):
            values: NDArray[Any] = getattr(head, way)(X)
            if scorer.needs != "labels":
                return values
            values = both_columns(values)
            # The label of a model is the likeliest class, whatever rule the head's own has.
            if values.shape[1] == classes:
                return values
    if scorer.needs == "labels":
        return np.eye(classes, dtype=np.float32)[np.asarray(head.predict(X), dtype=np.intp)]
    raise HeadError(
        f"{scorer.name} needs {' or '.join(ways)}, which {type(head).__name__} does not have: "
        "take another head, or scoring='accuracy'"
    )


Watch: TypeAlias = Callable[[list[Trial], int], None]
"""Called with the trials that are finished and the number of those that are planned."""


@dataclass(eq=False)
class Measuring:
    """Measures candidates on the folds of some rows, and keeps what is finished.

    Parameters
    ----------
    blocks : mapping of (backbone, tap) to FeatureBlock
        The features.
    rows : ndarray of shape (n,)
        Rows of the blocks that this is about.
    codes : ndarray of shape (n,)
        Their classes, 0 to k - 1.
    groups : ndarray of shape (n,), int64
        Rows with equal numbers belong together.
    folds : sequence of (train, test)
        Places in `rows`.
    scorer : Scorer
        How predictions are scored.
    journal : Journal
        What was finished before, and where to keep more.
    scope : str, default "main"
        Tells the trials of this object from others of the same journal.
    seed : int, default 0
        Seed of the heads.
    n_jobs : int, default -1
        Number of fits at a time.
    deadline : float, optional
        Moment of `time.monotonic` after which nothing is started; one trial always is.
    watch : callable, optional
        Is told of finished trials.
    sets : ndarray of shape (k, labels), optional
        Labels of each class, where an image has several.
    """

    blocks: Mapping[Place, FeatureBlock]
    rows: NDArray[np.intp]
    codes: NDArray[np.intp]
    groups: NDArray[np.int64]
    folds: Sequence[Fold]
    scorer: Scorer
    journal: Journal
    scope: str = "main"
    seed: int = 0
    n_jobs: int = -1
    deadline: float | None = None
    watch: Watch | None = None
    sets: NDArray[np.intp] | None = None
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    untried: set[Candidate] = field(default_factory=set)
    _data: dict[tuple[Place, float], FoldData] = field(default_factory=dict)

    def measure(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Trial]:
        """Measure candidates, each trained on a share of the training rows of each fold."""
        found: dict[Candidate, Measured] = {}
        sizes = _sizes(candidates)
        for unit in units_of(candidates, spread=self.deadline is not None):
            known = [(one, self._find(one, share)) for one in unit]
            found |= {one: measured for one, measured in known if measured is not None}
            missing = [one for one, measured in known if measured is None]
            if missing and self._expired(found):
                self.untried.update(missing)
                continue
            if missing:
                for one, measured in self._measure(unit, missing, share, sizes, found):
                    found[one] = measured
                    self._tell(found, share, len(candidates))
            self._tell(found, share, len(candidates))
        trials = [Trial(one, found[one], share) for one in candidates if one in found]
        self.trials |= {trial.candidate: trial for trial in trials}
        self.untried -= set(found)
        return trials

    def data(self, place: Place, share: float, sizes: list[float]) -> FoldData:
        """Return the rows of the folds of one block; one block is held at a time."""
        if (place, share) not in self._data:
            self._data.clear()
            self._data[place, share] = fold_data(
                self.blocks[place],
                self.rows,
                self.codes,
                self.folds,
                share=share,
                order=self._order(),
                sizes=sizes,
                sets=self.sets,
            )
        data = self._data[place, share]
        if set(sizes) - set(data.sizes):
            data.sizes += sizes
            data.forget_components()
        return data

    def _order(self) -> NDArray[np.intp]:
        """Shuffle groups, not rows, so that few rows are of few groups as all rows would be."""
        numbers = np.random.default_rng(self.seed).permutation(int(self.groups.max()) + 1)
        return np.argsort(numbers[self.groups], kind="stable")

    def _measure(
        self,
        unit: Sequence[Candidate],
        missing: Sequence[Candidate],
        share: float,
        sizes: list[float],
        found: Mapping[Candidate, Measured],
    ) -> Iterable[tuple[Candidate, Measured]]:
        first = unit[0]
        data = self.data((first.backbone, first.tap), share, sizes)
        sweep = None
        if self.sets is None:
            sweep = find_sweep(first, probabilities=self.scorer.needs == "probabilities")
        if sweep is not None:
            try:
                # All of the unit, also what is known: a sweep is one computation, and what its
                # settings learn from each other must not depend on when it was interrupted.
                together = measure_together(sweep, unit, data, self.scorer, seed=self.seed)
                self._keep(together.items(), share)
                yield from together.items()
            except HeadError:
                # Parameters that the head has and its sweep has not: one by one, then.
                pass
            else:
                return
        started = set(found)
        for one, measured in fit_in_parallel(
            missing,
            data,
            self.scorer,
            seed=self.seed,
            n_jobs=self.n_jobs,
            expired=lambda: self._expired(started),
        ):
            self._keep([(one, measured)], share)
            started.add(one)
            yield one, measured
        self.untried.update(set(missing) - started)

    def _keep(self, measured: Iterable[tuple[Candidate, Measured]], share: float) -> None:
        self.journal.add((self._key(one, share), figures) for one, figures in measured)

    def _key(self, candidate: Candidate, share: float) -> str:
        return f"{self.scope} {share:.6g} {candidate.key}"

    def _find(self, candidate: Candidate, share: float) -> Measured | None:
        """Return what the journal says of a candidate, None where it cannot be so."""
        known = self.journal.find(self._key(candidate, share))
        if known is None or known.failed:
            return known
        whole = len(known.scores) == len(self.folds)
        return known if whole and all(map(self.scorer.allows, known.scores)) else None

    def _expired(self, found: Iterable[Candidate]) -> bool:
        over = self.deadline is not None and time.monotonic() > self.deadline
        return over and (bool(self.trials) or bool(list(found)))

    def _tell(self, found: Mapping[Candidate, Measured], share: float, planned: int) -> None:
        if self.watch is not None:
            new = {one: Trial(one, measured, share) for one, measured in found.items()}
            self.watch(list({**self.trials, **new}.values()), planned)


def units_of(candidates: Sequence[Candidate], *, spread: bool = False) -> list[list[Candidate]]:
    """Put candidates that share block, transform and head together."""
    units: dict[tuple[str, ...], list[Candidate]] = {}
    for one in candidates:
        units.setdefault((one.backbone, one.tap, one.transform, one.head), []).append(one)
    places = {place: number for number, place in enumerate({key[:2]: None for key in units})}

    def turn(key: tuple[str, ...]) -> tuple[float, float]:
        by_block, by_cost = float(places[key[:2]]), training_cost(key[3])
        return (by_cost, by_block) if spread else (by_block, by_cost)

    return [units[key] for key in sorted(units, key=turn)]


def _sizes(candidates: Sequence[Candidate]) -> list[float]:
    transforms = {parse_transform(one.transform) for one in candidates}
    return sorted(transform.size for transform in transforms if transform.size is not None)
