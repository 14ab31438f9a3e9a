"""Measure candidates on folds: together where their head has a sweep, in parallel otherwise."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from featx.exceptions import HeadError, reason
from featx.heads.calibrated import fit_temperature
from featx.heads.rows import Floats, Fold, Numbers
from featx.heads.sweep import HeldOut, Sweep
from featx.heads.targets import both_columns
from featx.selection.metrics import Scorer
from featx.selection.search_space import BlockKey, Candidate, SearchSpace
from featx.selection.splits import repeated_folds
from featx.selection.transforms import (
    Estimator,
    Prepared,
    Transform,
    fit_components,
    parse_transform,
)
from featx.selection.trials import Journal, Trial
from featx.spec import joined_name, joined_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """How a search is done; see `featx.search` for what each means."""

    strategy: str = "grid"
    n_trials: int | None = None
    cv: int | str = 5
    repeats: int = 1
    scoring: str = "accuracy"
    score: str = "auto"
    budget_s: float | None = None
    n_jobs: int = -1
    seed: int = 0
    one_standard_error: bool = False
    joins: bool = True
    ensemble: bool = True
    caution: float = 0.0
    resume: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.cv, int) and self.cv < 2:
            raise HeadError(
                f"expected 2 folds or more, or the name of a split, received cv={self.cv}: a "
                "candidate is measured on rows that it was not trained on"
            )
        if self.repeats < 1:
            raise HeadError(f"expected 1 repeat or more, received repeats={self.repeats}")
        if self.budget_s is not None and not self.budget_s > 0:
            raise HeadError(
                f"expected a budget of more than 0 seconds, received budget_s={self.budget_s}: "
                "leave it out for none"
            )
        if self.budget_s is not None and self.score == "nested":
            raise HeadError(
                "a budget bounds one search and score='nested' repeats it: take "
                "score='holdout' with a budget, or leave the budget out"
            )


Number = TypeVar("Number", int, float)


def total(parts: Sequence[Number | None]) -> Number | None:
    """Return a sum, None where a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBlock:
    """One matrix of features of the dataset, or several side by side."""

    backbone: str
    tap: str
    X: Floats  # (n, d); of several side by side, those of `parts` stand for it
    digest: str = ""  # what identifies its content, for resuming
    views: tuple[Floats, ...] = ()  # of the same images: trained on, never tested on
    ms: float | None = None  # of the backbone: milliseconds an image, and bytes of weights
    bytes: int | None = None
    cost: float = 0.0  # which backbone is cheaper, the same on every machine
    parts: tuple[FeatureBlock, ...] = ()

    @classmethod
    def joined(cls, blocks: Sequence[FeatureBlock]) -> FeatureBlock:
        """Return blocks side by side as one; a backbone costs once, whatever is taken from it.

        No features are copied before rows are taken.
        """
        by_key = {part.block_key: part for block in blocks for part in block.parts or [block]}
        name = joined_name(by_key)
        parts = tuple(by_key[key] for key in joined_parts(name))
        dearest: dict[str, FeatureBlock] = {}
        for part in sorted(parts, key=lambda part: part.ms or 0.0):
            dearest[part.backbone] = part
        return cls(
            **name,
            X=parts[0].X,
            digest=" + ".join(part.digest for part in parts),
            ms=total([part.ms for part in dearest.values()]),
            bytes=total([part.bytes for part in dearest.values()]),
            cost=sum(part.cost for part in dearest.values()),
            parts=parts,
        )

    @property
    def block_key(self) -> BlockKey:
        """Backbone and tap."""
        return self.backbone, self.tap

    @property
    def width(self) -> int:
        """Number of features an image."""
        return sum(part.width for part in self.parts) or int(self.X.shape[1])

    @property
    def copies(self) -> int:
        """Number of rows an image: itself and its views."""
        return min((part.copies for part in self.parts), default=1 + len(self.views))

    def take(self, rows: Numbers) -> Floats:
        """Return rows of the images and then of each view; no copy where it is all of one."""
        if self.parts:
            count = self.copies * len(rows)
            return np.concatenate([part.take(rows)[:count] for part in self.parts], axis=1)
        parts = [self.X, *self.views]
        if len(rows) < len(self.X):
            parts = [part[rows] for part in parts]
        X = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)

    def fit(self, head: Estimator, rows: Numbers, y: NDArray[np.generic]) -> Estimator:
        """Fit a head on rows and their views, one view below the other, and return it."""
        return head.fit(self.take(rows), np.concatenate([y] * self.copies))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Some rows of the dataset with what the selection has to know of them."""

    rows: Numbers
    codes: Numbers  # of their classes
    groups: NDArray[np.int64]  # rows with equal numbers are never on both sides
    classes: NDArray[np.generic]
    # Which labels (k, labels) each class has, where it is a set; or its numbers, of a regression.
    sets: NDArray[np.number] | None = None

    @property
    def regression(self) -> bool:
        """Whether numbers are learnt: they are float, where labels are whole."""
        return self.sets is not None and self.sets.dtype.kind == "f"

    def targets(self) -> NDArray[np.number]:
        """Return what heads learn: classes (n,), labels of 0 and 1, or numbers, (n, k)."""
        return self.codes if self.sets is None else self.sets[self.codes]

    def folds(self, folds: int, *, repeats: int = 1, seed: int = 0) -> list[Fold]:
        """Split the rows, with every class or label in equal shares."""
        # A byte an entry: of many images and labels that is an eighth of what sets have.
        y: NDArray[np.generic] = self.classes
        if self.sets is not None:
            y = self.sets if self.regression else self.sets.astype(np.uint8)
        return repeated_folds(
            y[self.codes], folds=folds, repeats=repeats, groups=self.groups, seed=seed
        )

    def take(self, chosen: Numbers) -> Sample:
        """Return some of these rows."""
        return replace(
            self, rows=self.rows[chosen], codes=self.codes[chosen], groups=self.groups[chosen]
        )


@dataclass(eq=False)
class FoldData:
    """Features with views below the images, and their classes, cut into folds."""

    X: Floats
    codes: Numbers
    folds: list[Fold]
    sets: NDArray[np.number] | None = None
    _sizes: set[float] = field(default_factory=set)
    _components: dict[int, tuple[Estimator, Estimator]] = field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Whether numbers are learnt."""
        return self.sets is not None and self.sets.dtype.kind == "f"

    def targets(self, rows: Numbers) -> NDArray[np.number]:
        """Return what heads learn of rows: classes (m,), labels of 0 and 1, or numbers, (m, k)."""
        return self.codes[rows] if self.sets is None else self.sets[self.codes[rows]]

    def make(self, candidate: Candidate, prepared: Prepared, seed: int) -> Estimator:
        """Make the untrained head of a candidate that stands behind a transform."""
        several = self.sets is not None and not self.regression
        return prepared.transform.head(candidate.make(seed=seed, multilabel=several))

    def expect(self, sizes: set[float]) -> None:
        """Know all sizes of principal components that will be asked for."""
        if not sizes <= self._sizes:
            self._sizes |= sizes
            self._components.clear()

    def prepare(self, transform: Transform, fold: int) -> Prepared:
        """Return a transform that has learnt from the training rows of one fold."""
        if transform.by_row:
            return Prepared(transform)
        if fold not in self._components:
            train = self.folds[fold][0]
            self._components[fold] = fit_components(self.X[train], sorted(self._sizes))
        return Prepared(transform, *self._components[fold])


def fold_data(
    block: FeatureBlock, sample: Sample, folds: Sequence[Fold], share: float = 1.0, seed: int = 0
) -> FoldData:
    """Cut the rows of a block into folds, each trained on a share of its training rows."""
    copies, count = block.copies, len(sample.rows)
    cut: list[Fold] = []
    for train, test in folds:
        chosen = train if share >= 1 else _share_of(sample, train, share, seed)
        cut.append((np.concatenate([chosen + copy * count for copy in range(copies)]), test))
    return FoldData(block.take(sample.rows), np.tile(sample.codes, copies), cut, sample.sets)


_FEWEST_OF_SHARE = 10


def _share_of(sample: Sample, train: Numbers, share: float, seed: int) -> Numbers:
    """Return a share of the training rows of every class."""
    units, unit_of = np.unique(sample.groups, return_inverse=True)
    numbers = np.random.default_rng(seed).permutation(len(units))
    # Groups are shuffled, not rows, so that few rows are of few groups as all rows would be.
    order = np.argsort(numbers[unit_of], kind="stable")
    order = order[np.isin(order, train)]
    if sample.regression:
        return np.sort(order[: max(_FEWEST_OF_SHARE, round(share * len(order)))])
    chosen = []
    for code in np.unique(sample.codes[train]):
        members = order[sample.codes[order] == code]
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


_BATCH = 256
_REPEATS = 3
_OF_EACH_CLASS = (4, 8)
_OF_VALUES = (20, 40)


def _milliseconds(prepared: Prepared, head: Estimator, X: Floats) -> float:
    """Return the least of three timings of transform and prediction, an image of a batch of 256."""
    batch = X[:_BATCH]
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        head.predict(prepared.apply(batch))
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1000 / len(batch)


def _learnt_bytes(*parts: object) -> int:
    """Return the bytes of all arrays that fitted objects hold, each array once."""
    seen: dict[int, object] = {}  # with the objects: an identity is used again after them
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
            state: object = getattr(item, "__getstate__", dict)()
            waiting += [state] if isinstance(state, dict | tuple) else []
    return total


def probe(candidate: Candidate, data: FoldData, *, seed: int) -> tuple[float, int]:
    """Measure what a head would cost, from a fit on a few rows where that is enough."""
    prepared = data.prepare(parse_transform(candidate.transform), 0)
    train, test = data.folds[0]
    classes = range(int(data.codes[train].max()) + 1)
    learnt, received = [], []
    for count in _OF_VALUES if data.regression else _OF_EACH_CLASS:
        if data.regression:
            rows = train[:count]
        else:
            rows = np.concatenate([train[data.codes[train] == code][:count] for code in classes])
        Z = prepared.apply(data.X[rows])
        # Its probabilities cost a number more, and several fits.
        head = uncalibrated(data.make(candidate, prepared, seed)).fit(Z, data.targets(rows))
        learnt.append(_learnt_bytes(head))
        received.append(Z.nbytes)
    if 2 * (learnt[1] - learnt[0]) >= received[1] - received[0] > 0:  # it keeps what it is given
        head = uncalibrated(data.make(candidate, prepared, seed))
        head.fit(prepared.apply(data.X[train]), data.targets(train))
    return _milliseconds(prepared, head, data.X[test]), _learnt_bytes(head, prepared.learnt())


def find_sweep(candidate: Candidate, *, probabilities: bool = False) -> Sweep | None:
    """Return the sweep of a candidate's head, where it has one that goes with the transform."""
    row = candidate.row
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
    head, transform = candidates[0].head, parse_transform(candidates[0].transform)
    swept = partial(
        sweep, candidates=[dict(candidate.params) for candidate in candidates], seed=seed
    )
    count = 0
    for held in _swept(swept, transform, data):
        if probabilities and not held.probabilities:
            raise HeadError(f"the sweep of {head!r} gives margins, no probabilities")
        count += 1
        yield held
    if count != len(candidates) * len(data.folds):
        raise HeadError(f"the sweep of {head!r} left candidates out")


def _swept(
    sweep: Callable[[Floats, NDArray[np.number], Sequence[Fold]], Iterator[HeldOut]],
    transform: Transform,
    data: FoldData,
) -> Iterator[HeldOut]:
    if transform.by_row:
        learnt = data.targets(np.arange(len(data.X)))
        yield from sweep(data.prepare(transform, 0).apply(data.X), learnt, data.folds)
        return
    for fold, (train, test) in enumerate(data.folds):
        rows = np.concatenate([train, test])
        Z = data.prepare(transform, fold).apply(data.X[rows])
        split = np.arange(len(train)), np.arange(len(train), len(rows))
        for held in sweep(Z, data.targets(rows), [split]):
            yield replace(held, fold=fold)


def uncalibrated(head: Estimator) -> Estimator:
    """Return the head that gives the same labels without probabilities, for a fifth of the time."""
    from featx.heads.calibrated import TemperatureCalibrated

    if isinstance(head, TemperatureCalibrated):
        return head.estimator
    steps = getattr(head, "steps", None)
    if steps and isinstance(steps[-1][1], TemperatureCalibrated):
        return type(head)([*steps[:-1], (steps[-1][0], steps[-1][1].estimator)])
    return head


def predicted_values(head: Estimator, X: Floats, scorer: Scorer, classes: int) -> Floats:
    """Return what a fitted head says of rows, a column a class, as a scorer needs it."""
    if scorer.needs == "values":
        return np.asarray(head.predict(X), np.float64).reshape(len(X), -1)
    ways: tuple[str, ...] = ("predict_proba",)
    if scorer.needs != "probabilities":
        ways = (*ways, "decision_function")
    for way in ways:
        if hasattr(head, way):
            values: Floats = getattr(head, way)(X)
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


@dataclass(frozen=True, slots=True)
class _Fit:
    """What came of one candidate on one fold."""

    number: int
    fold: int
    fit_s: float
    score: float = 0.0
    score_s: float = 0.0
    ms: float | None = None
    bytes: int | None = None
    failed: str = ""


Watch: TypeAlias = Callable[[list[Trial], int], None]
"""Called with the trials that are finished and the number of those that are planned."""


@dataclass(eq=False)
class Search:
    """Measures candidates on the folds of some rows, and keeps what is finished."""

    blocks: dict[BlockKey, FeatureBlock]
    space: SearchSpace
    options: SearchOptions
    sample: Sample
    folds: Sequence[Fold]  # of the sample
    scorer: Scorer
    journal: Journal  # what was finished before, and where to keep more
    scope: str = "main"  # tells its trials from others of the same journal
    deadline: float | None = None  # of `time.monotonic`: nothing is started then, but one trial
    watch: Watch | None = None
    trials: dict[Candidate, Trial] = field(default_factory=dict, init=False)
    untried: set[Candidate] = field(default_factory=set, init=False)
    single: tuple[BlockKey, ...] = field(init=False)  # the blocks that are no joins
    _data: dict[tuple[BlockKey, float], FoldData] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.single = tuple(key for key, block in self.blocks.items() if not block.parts)

    def join(self, keys: Sequence[BlockKey]) -> FeatureBlock:
        """Return blocks side by side, among the blocks that can be measured from now on."""
        block = FeatureBlock.joined([self.blocks[key] for key in keys])
        return self.blocks.setdefault(block.block_key, block)

    def measure(self, candidates: Sequence[Candidate], *, share: float = 1.0) -> list[Trial]:
        """Return the trials of candidates that finished, each trained on a share of each fold."""
        done: dict[Candidate, Trial] = {}
        sizes = {parse_transform(candidate.transform).size for candidate in candidates} - {None}
        for unit in _units_of(candidates, spread=self.deadline is not None):
            known = [self._known(candidate, share) for candidate in unit]
            done |= {trial.candidate: trial for trial in known if trial is not None}
            missing = [candidate for candidate in unit if candidate not in done]
            if missing and not self._expired(done):
                data = self.data(unit[0].block_key, share, {size for size in sizes if size})
                for trials in self._measured(unit, missing, data, done):
                    trials = [replace(trial, share=share) for trial in trials]
                    self.journal.add(self.scope, trials)
                    done |= {trial.candidate: trial for trial in trials}
                    self._tell(done, len(candidates))
            self.untried.update(candidate for candidate in missing if candidate not in done)
            self._tell(done, len(candidates))
        self.trials |= done
        self.untried -= set(done)
        return [done[candidate] for candidate in candidates if candidate in done]

    def keep(self, candidate: Candidate, scores: list[float], members: Sequence[Trial]) -> None:
        """Take a candidate that consists of others as measured, with the time of these."""
        times = [[getattr(member, name) for member in members] for name in ("fit_s", "score_s")]
        fit_s, score_s = ([sum(fold) for fold in zip(*parts, strict=True)] for parts in times)
        self.trials[candidate] = Trial(candidate, scores=scores, fit_s=fit_s, score_s=score_s)
        self._tell({}, len(self.trials))

    def held_out(self, candidate: Candidate) -> list[Floats]:
        """Return the probabilities that a candidate gives the rows of each fold, (m, k)."""
        transform, seed = parse_transform(candidate.transform), self.options.seed
        sizes = set() if transform.size is None else {transform.size}
        data = self.data(candidate.block_key, 1.0, sizes)
        sweep = find_sweep(candidate) if self.sample.sets is None else None
        if sweep is None:
            return [
                self._probabilities(candidate, transform, fold, data)
                for fold in range(len(data.folds))
            ]
        held = sorted(
            held_out_together(sweep, [candidate], data, seed=seed), key=lambda held: held.fold
        )
        values = [both_columns(one.values, mirrored=True) for one in held]
        if all(one.probabilities for one in held):
            return values
        truth = np.concatenate([data.codes[test] for _, test in data.folds])
        temperature = fit_temperature(np.concatenate(values), truth)
        return [np.asarray(softmax(margins / temperature, axis=1)) for margins in values]

    def _probabilities(
        self, candidate: Candidate, transform: Transform, fold: int, data: FoldData
    ) -> Floats:
        train, test = data.folds[fold]
        prepared = data.prepare(transform, fold)
        head = data.make(candidate, prepared, self.options.seed)
        head.fit(prepared.apply(data.X[train]), data.targets(train))
        proba: Floats = head.predict_proba(prepared.apply(data.X[test]))
        return proba

    def data(self, key: BlockKey, share: float, sizes: set[float]) -> FoldData:
        """Return the rows of the folds of one block; one block is held at a time."""
        if (key, share) not in self._data:
            self._data.clear()
            block, seed = self.blocks[key], self.options.seed
            self._data[key, share] = fold_data(block, self.sample, self.folds, share, seed)
        data = self._data[key, share]
        data.expect(sizes)
        return data

    def _measured(
        self,
        unit: Sequence[Candidate],
        missing: Sequence[Candidate],
        data: FoldData,
        done: Collection[Candidate],
    ) -> Iterator[list[Trial]]:
        """Yield the trials of candidates that share block, transform and head as they finish."""
        sweep = None
        if self.sample.sets is None or self.sample.regression:
            sweep = find_sweep(unit[0], probabilities=self.scorer.needs == "probabilities")
        together: list[Trial] = []
        if sweep is not None:
            # Where the head has parameters that its sweep has not, one by one.
            with suppress(HeadError):
                # All of the unit, also what is known: a sweep is one computation, and what its
                # settings learn from each other must not depend on when it was interrupted.
                together = self._swept(sweep, unit, data)
        if together:
            yield together
        else:
            for trial in self._fitted(missing, data, done):
                yield [trial]

    def _swept(self, sweep: Sweep, unit: Sequence[Candidate], data: FoldData) -> list[Trial]:
        started = time.perf_counter()
        scores = [[0.0 for _ in data.folds] for _ in unit]
        stopped: set[int] = set()
        needed = self.scorer.needs == "probabilities"
        for held in held_out_together(
            sweep, unit, data, seed=self.options.seed, probabilities=needed
        ):
            truth = data.targets(data.folds[held.fold][1])
            scores[held.candidate][held.fold] = self.scorer.function(truth, held.values)
            if held.stopped:
                stopped.add(held.candidate)
        folds = len(data.folds)
        seconds = [(time.perf_counter() - started) / (len(unit) * folds)] * folds
        return [
            Trial(
                candidate,
                scores=scores[number],
                fit_s=list(seconds),
                score_s=[0.0] * folds,
                stopped=number in stopped,
            )
            for number, candidate in enumerate(unit)
        ]

    def _fitted(
        self, candidates: Sequence[Candidate], data: FoldData, done: Collection[Candidate]
    ) -> Iterator[Trial]:
        """Fit candidates that share a block and a transform, and yield each when it is finished."""
        from joblib import Parallel, delayed
        from threadpoolctl import threadpool_limits

        transform = parse_transform(candidates[0].transform)
        folds = range(len(data.folds))
        prepared = [data.prepare(transform, fold) for fold in folds]

        def planned() -> Iterator[object]:
            for number, candidate in enumerate(candidates):
                if self._expired(done):
                    return
                for fold in folds:
                    yield delayed(self._fit)(number, candidate, fold, prepared[fold], data)

        # Keras trains on all cores by itself, and its global state is not for several threads.
        rows = [candidate.row for candidate in candidates]
        alone = any(row is not None and row.needs_keras for row in rows)
        finished: dict[int, list[_Fit]] = {}
        # One thread of linear algebra a fit, however many fits there are at a time: the sums are
        # then added up in the same order, and n_jobs changes no score.
        # Threads, since they start at once and fits leave the interpreter alone; what they change
        # of the filters of warnings, which are the process's, is undone.
        with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
            # scikit-learn empties and refills these filters for each tree of a forest, so that in
            # several threads it is chance which of them hold. None may turn a warning into an
            # error, which would fail a candidate, and what a forest says of it is no news.
            warnings.filters = [entry for entry in warnings.filters if entry[0] != "error"]
            warnings.filterwarnings("ignore", "`sklearn.utils.parallel.delayed`", UserWarning)
            jobs = Parallel(
                n_jobs=1 if alone else self.options.n_jobs,
                backend="threading",
                return_as="generator_unordered",
                pre_dispatch="n_jobs",
                batch_size=1,
            )
            for fit in jobs(planned()):
                fits = finished.setdefault(fit.number, [])
                fits.append(fit)
                if len(fits) == len(data.folds):
                    fits.sort(key=lambda fit: fit.fold)
                    failed = next((fit.failed for fit in fits if fit.failed), "")
                    yield Trial(
                        candidates[fit.number],
                        scores=[] if failed else [fit.score for fit in fits],
                        fit_s=[fit.fit_s for fit in fits],
                        score_s=[fit.score_s for fit in fits],
                        failed=failed,
                        ms=fits[0].ms,
                        bytes=fits[0].bytes,
                    )

    def _fit(
        self, number: int, candidate: Candidate, fold: int, prepared: Prepared, data: FoldData
    ) -> _Fit:
        train, test = data.folds[fold]
        started = time.perf_counter()
        try:
            head = data.make(candidate, prepared, self.options.seed)
            head = uncalibrated(head) if self.scorer.needs == "labels" else head
            head.fit(prepared.apply(data.X[train]), data.targets(train))
            fitted = time.perf_counter()
            classes = int(data.codes.max()) + 1
            values = predicted_values(head, prepared.apply(data.X[test]), self.scorer, classes)
            score = self.scorer.function(data.targets(test), values)
            scored = time.perf_counter()
            ms = _milliseconds(prepared, head, data.X[test]) if fold == 0 else None
            size = _learnt_bytes(head, prepared.learnt()) if fold == 0 else None
        except Exception as error:  # heads are anybody's code: one that fails is a row, not the end
            return _Fit(number, fold, time.perf_counter() - started, failed=reason(error))
        return _Fit(number, fold, fitted - started, score, scored - fitted, ms, size)

    def _known(self, candidate: Candidate, share: float) -> Trial | None:
        """Return what the journal says of a candidate, None where it cannot be so."""
        trial = self.journal.find(self.scope, candidate, share)
        if trial is None or trial.failed:
            return trial
        whole = len(trial.scores) == len(self.folds)
        return trial if whole and all(map(self.scorer.allows, trial.scores)) else None

    def _expired(self, done: Collection[Candidate]) -> bool:
        over = self.deadline is not None and time.monotonic() > self.deadline
        return over and bool(self.trials or done)

    def _tell(self, done: Mapping[Candidate, Trial], planned: int) -> None:
        if self.watch is not None:
            self.watch(list({**self.trials, **done}.values()), planned)


def _units_of(candidates: Sequence[Candidate], *, spread: bool) -> list[list[Candidate]]:
    """Put candidates that share block, transform and head together."""
    units: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        key = (*candidate.block_key, candidate.transform, candidate.head)
        units.setdefault(key, []).append(candidate)
    numbers = {block: number for number, block in enumerate({key[:2]: None for key in units})}

    def turn(key: tuple[str, ...]) -> tuple[int, int]:
        row = units[key][0].row
        # Those that are measured together first, those by Keras last.
        cost = 1 if row is None else 0 if row.sweep else 1 + row.needs_keras
        return (cost, numbers[key[:2]]) if spread else (numbers[key[:2]], cost)

    return [units[key] for key in sorted(units, key=turn)]
