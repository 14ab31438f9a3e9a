"""What a sweep is: many settings of one head, measured on every fold for the price of few fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.rows import Fold
from featx.heads.scatter import fold_scales
from featx.heads.table import make_head
from featx.heads.validation import few_images_allowed, require_finite


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What one setting says of the rows of one fold that it has not seen.

    Parameters
    ----------
    candidate : int
        Which setting.
    fold : int
        Which fold.
    values : ndarray of shape (m, k)
        A column a class, in the order of the codes: probabilities, or margins of which only the
        order counts.
    probabilities : bool, default True
        Whether they are probabilities.
    stopped : bool, default False
        Whether the setting was given up early, since it could no longer win: its values are those
        of an unfinished fit.
    """

    candidate: int
    fold: int
    values: NDArray[np.floating[Any]]
    probabilities: bool = True
    stopped: bool = False


class Sweep(Protocol):
    """Measures many settings of one head together."""

    def __call__(
        self,
        X: NDArray[np.floating[Any]],
        y: NDArray[np.intp],
        folds: Sequence[Fold],
        candidates: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        sample_weight: NDArray[np.floating[Any]] | None = None,
    ) -> Iterator[HeldOut]:
        """Yield one `HeldOut` for each candidate and fold, in any order."""


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
