"""The settings that a sweep is given, checked before any time is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.registry import make_head
from featx.heads.sweep import Fold
from featx.heads.validation import require_finite


def core_estimators(
    name: str, candidates: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> list[Any]:
    """Make each setting's estimator, without the scaler before it and the calibration around it."""
    from featx.heads.calibrated import TemperatureCalibrated

    heads = [make_head(name, seed=seed, **candidate) for candidate in candidates]
    cores = [head.steps[-1][1] for head in heads]
    return [c.estimator if isinstance(c, TemperatureCalibrated) else c for c in cores]


def checked_data(
    X: NDArray[Any],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    sample_weight: NDArray[Any] | None = None,
    *,
    weights_refused_by: str = "",
) -> tuple[NDArray[np.floating[Any]], NDArray[np.intp]]:
    """Give features in float32 or float64, and codes, that a sweep can work on."""
    features, codes = np.asarray(X), np.asarray(y)
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float32)
    if features.ndim != 2 or codes.shape != features.shape[:1]:
        raise HeadError(
            f"expected a matrix of features and a code a row, received shapes {features.shape} "
            f"and {codes.shape}: take both from the same dataset"
        )
    require_finite(features)
    classes = int(codes.max()) + 1
    for number, (train, _) in enumerate(folds):
        missing = np.flatnonzero(np.bincount(codes[train], minlength=classes) == 0)
        if missing.size:
            raise HeadError(
                f"class {missing[0]} has no row in the training part of fold {number}: use fewer "
                "folds, or leave out classes with few images"
            )
    if sample_weight is not None and weights_refused_by:
        raise HeadError(
            f"{weights_refused_by!r} knows no weights of rows: leave sample_weight out, or use "
            "logistic, ridge or svm"
        )
    return features, codes
