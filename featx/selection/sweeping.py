"""Candidates of one head measured together, for the price of few fits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from featx.exceptions import HeadError
from featx.heads.sweep import HeldOut, Sweep
from featx.heads.table import HEADS
from featx.selection.fold_data import FoldData
from featx.selection.scoring import Scorer
from featx.selection.space import Candidate
from featx.selection.transforms import Transform, parse_transform
from featx.selection.trials import Measured


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
