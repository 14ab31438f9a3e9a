"""Support vector machines by their margins: no calibration for a setting that is not chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.candidates import checked_data, core_estimators
from featx.heads.scatter import fold_scales
from featx.heads.sweep import Fold, HeldOut
from featx.heads.validation import few_images_allowed


def sweep_svm(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure settings of the head ``svm`` (see `Sweep`)."""
    return _margins("svm", X, y, folds, candidates, seed, sample_weight)


def sweep_rbf(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure settings of the head ``rbf`` (see `Sweep`)."""
    checked_data(X, y, folds, sample_weight, weights_refused_by="rbf")
    return _margins("rbf", X, y, folds, candidates, seed, None)


def _margins(
    name: str,
    X: NDArray[Any],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    seed: int,
    sample_weight: NDArray[np.floating[Any]] | None,
) -> Iterator[HeldOut]:
    X, y = checked_data(X, y, folds)
    settings = core_estimators(name, candidates, seed=seed)
    for fold, ((train, test), scale) in enumerate(zip(folds, fold_scales(X, folds), strict=True)):
        trained, tested = scale.apply(X[train]), scale.apply(X[test])
        weights = {} if sample_weight is None else {"sample_weight": sample_weight[train]}
        for number, setting in enumerate(settings):
            with few_images_allowed():
                fitted = setting.fit(trained, y[train], **weights)
            margins = fitted.decision_function(tested)
            if margins.ndim == 1:
                margins = np.column_stack([-margins, margins])
            yield HeldOut(number, fold, margins, probabilities=False)
