"""The sweep of dense heads: the settings of each fold are trained as one stack."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.dense_many import fit_heads
from featx.heads.rows import Fold
from featx.heads.sweep import HeldOut, checked_data, core_estimators

_LOG = logging.getLogger("featx")


def sweep_dense(
    X: NDArray[np.floating[Any]],
    y: NDArray[Any],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure many settings of the head ``dense``; see `featx.heads.sweep.Sweep`."""
    from sklearn.preprocessing import StandardScaler

    # Unknown names and values out of range are said before any fold is trained.
    core_estimators("dense", candidates, seed=seed)
    if y.ndim == 1:
        X, y = checked_data(X, y, folds, sample_weight)
    # Stacks of the same shapes recur from fold to fold: they are compiled once.
    models: dict[Any, Any] = {}
    for number, (train, test) in enumerate(folds):
        heads = core_estimators("dense", candidates, seed=seed)
        scaler = StandardScaler()
        weights = None if sample_weight is None else sample_weight[train]
        features = np.asarray(X[train], dtype=np.float32)
        failures = fit_heads(
            heads, scaler.fit_transform(features), y[train], weights, models=models
        )
        asked = scaler.transform(np.asarray(X[test], dtype=np.float32))
        for place, (head, failure) in enumerate(zip(heads, failures, strict=True)):
            if failure:
                _LOG.warning("candidate %d, fold %d: %s", place, number, failure)
                columns = y.shape[1] if y.ndim == 2 else len(np.unique(y[train]))
                share = 0.5 if y.ndim == 2 else 1 / columns
                values = np.full((len(test), columns), share, dtype=np.float32)
                yield HeldOut(place, number, values, stopped=True)
            else:
                yield HeldOut(place, number, head.predict_proba(asked))
