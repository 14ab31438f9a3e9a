"""Candidates fitted one by one, in parallel."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, reason
from featx.heads.table import HEADS
from featx.heads.targets import both_columns
from featx.selection.costs import learnt_bytes, milliseconds
from featx.selection.fold_data import FoldData
from featx.selection.scoring import Scorer
from featx.selection.space import Candidate
from featx.selection.transforms import parse_transform
from featx.selection.trials import Measured


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
