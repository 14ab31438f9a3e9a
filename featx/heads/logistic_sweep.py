"""Logistic regression for every C from one path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from featx.exceptions import HeadError
from featx.heads.logistic_fit import ARRAYS, MACHINE_SHARE, unknown_setting
from featx.heads.logistic_path import LogisticPath, fit_logistic_path
from featx.heads.rows import Fold
from featx.heads.sweep import HeldOut, checked_data, core_estimators
from featx.memory import machine_bytes

# Fewer values of C are fitted to their end: there is nothing to give up.
_RACE_FROM = 4
# Up to so many rows a fold costs little by itself; beyond, the scaling of all folds together moves
# no score by more than 0.001.
_FEW_ROWS = 100


def sweep_logistic(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure values of C of the head ``logistic`` (see `Sweep`).

    Notes
    -----
    Beyond 100 rows all folds are standardised alike, by the rows of all of them and without their
    labels, since they share one eigenbasis; a head that is fitted by itself is standardised by its
    own rows, and so is each fold of fewer.
    """
    X, y = checked_data(X, y, folds, sample_weight)
    settings = core_estimators("logistic", candidates, seed=seed)
    _require_known(settings)
    groups: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        alike = {**setting.get_params(), "C": None}
        groups.setdefault(repr(sorted(alike.items(), key=str)), []).append(number)
    for members in groups.values():
        first = settings[members[0]]
        # Scores at this tolerance are those of the solution to 0.002.
        tol = max(float(first.tol), 1e-5)
        Cs = np.unique([float(settings[number].C) for number in members])
        racing = len(Cs) >= _RACE_FROM and len(X) > _FEW_ROWS
        for numbers, scaled in _parts(X, y, folds, apart=not racing):
            some = [folds[number] for number in numbers]
            path = fit_logistic_path(
                scaled,
                y,
                some,
                Cs=Cs,
                weights=_weights(y, some, first.class_weight, sample_weight),
                sample_weight=(
                    None if sample_weight is None else np.asarray(sample_weight, np.float64)
                ),
                tol=tol,
                # Probabilities move longer than scores do.
                gap_tol=0.1 * tol,
                max_iter=int(first.max_iter),
                racing=racing,
            )
            for held in _held_out(path, scaled, some, {n: settings[n].C for n in members}):
                yield replace(held, fold=numbers[held.fold])


def _parts(
    X: NDArray[Any], y: NDArray[np.intp], folds: Sequence[Fold], *, apart: bool
) -> Iterator[tuple[range, NDArray[np.floating[Any]]]]:
    """Give numbers of folds that are solved together, and the features standardised for them."""
    if len(X) <= _FEW_ROWS:
        for number, (train, _) in enumerate(folds):
            yield range(number, number + 1), StandardScaler().fit(X[train]).transform(X)
        return
    scaled = StandardScaler().fit_transform(X)
    step, memory = len(folds), machine_bytes()
    if apart and memory is not None:
        each = ARRAYS * len(X) * (int(y.max()) + 1) * scaled.itemsize
        step = max(1, min(step, memory // MACHINE_SHARE // each))
    for start in range(0, len(folds), step):
        yield range(start, min(start + step, len(folds))), scaled


def _require_known(settings: Sequence[Any]) -> None:
    for setting in settings:
        unknown = unknown_setting(setting)
        if unknown is not None:
            name, value, usual = unknown
            raise HeadError(
                f"logistic with {name}={value!r} has no shortcut: leave {name} at {usual!r}"
            )


def _weights(
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    class_weight: Any,
    sample_weight: NDArray[np.floating[Any]] | None,
) -> NDArray[np.float64] | None:
    if class_weight is None and sample_weight is None:
        return None
    own = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    weights = np.tile(own, (len(folds), 1))
    if class_weight is not None:
        for fold, (train, _) in enumerate(folds):
            weights[fold, train] *= compute_sample_weight(class_weight, y[train])
    return weights


def _held_out(
    path: LogisticPath, X: NDArray[Any], folds: Sequence[Fold], chosen: Mapping[int, float]
) -> Iterator[HeldOut]:
    from scipy.special import expit, softmax

    last_fitted = max(place for place, coef in enumerate(path.coef) if coef is not None)
    for number, C in chosen.items():
        place = int(np.searchsorted(path.Cs, float(C)))
        stopped = bool(path.stopped[place])
        coef, intercept = (
            part[last_fitted if stopped else place] for part in (path.coef, path.intercept)
        )
        assert coef is not None
        assert intercept is not None
        for fold, (_, test) in enumerate(folds):
            scores = X[test] @ coef[fold].T.astype(X.dtype) + intercept[fold].astype(X.dtype)
            if scores.shape[1] == 1:
                positive = expit(scores[:, 0])
                shares = np.stack([1 - positive, positive], axis=1)
            else:
                shares = softmax(scores, axis=1)
            yield HeldOut(number, fold, shares, stopped=stopped)
