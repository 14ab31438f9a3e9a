"""Candidates of one head measured together, for the price of few fits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module

import numpy as np

from featx.exceptions import HeadError
from featx.heads.registry import HEADS
from featx.heads.sweep import HeldOut, Sweep
from featx.selection.fold_data import FoldData
from featx.selection.scoring import Scorer
from featx.selection.space import Candidate
from featx.selection.transforms import parse_transform
from featx.selection.trials import Measured

__all__ = ["find_sweep", "measure_together"]


def find_sweep(candidate: Candidate) -> Sweep | None:
    """Return the sweep of a candidate's head, where it has one that goes with the transform."""
    path = HEADS[candidate.head].sweep if candidate.head in HEADS else ""
    # A sweep standardises as its head does: behind these transforms the head would not.
    if not path or candidate.estimator is not None or parse_transform(candidate.transform).bare:
        return None
    module, _, name = path.rpartition(".")
    sweep: Sweep = getattr(import_module(module), name)
    return sweep


def measure_together(
    sweep: Sweep,
    candidates: Sequence[Candidate],
    data: FoldData,
    scorer: Scorer,
    *,
    seed: int,
) -> dict[Candidate, Measured]:
    """Measure candidates that share block, transform and head.

    Raises
    ------
    HeadError
        If the sweep does not take these parameters, or does not give what the scorer needs.
    """
    params = [dict(candidate.params) for candidate in candidates]
    started = time.perf_counter()
    scores: dict[tuple[int, int], float] = {}
    stopped: set[int] = set()

    def keep(held: HeldOut, fold: int) -> None:
        if scorer.needs == "probabilities" and not held.probabilities:
            raise HeadError(f"{scorer.name} needs probabilities, and this sweep gives margins")
        truth = data.codes[data.folds[fold][1]]
        scores[held.candidate, fold] = scorer.function(truth, held.values)
        if held.stopped:
            stopped.add(held.candidate)

    transform = parse_transform(candidates[0].transform)
    if transform.by_row:
        X = data.prepare(transform, 0).apply(data.X)
        for held in sweep(X, data.codes, data.folds, params, seed=seed):
            keep(held, held.fold)
    else:
        for fold, (train, test) in enumerate(data.folds):
            rows = np.concatenate([train, test])
            Z = data.prepare(transform, fold).apply(data.X[rows])
            split = np.arange(len(train)), np.arange(len(train), len(rows))
            for held in sweep(Z, data.codes[rows], [split], params, seed=seed):
                keep(held, fold)
    folds = range(len(data.folds))
    if len(scores) != len(candidates) * len(data.folds):
        raise HeadError(f"the sweep of {candidates[0].head!r} left candidates out")
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
