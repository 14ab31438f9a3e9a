"""What a sweep is: many settings of one head, measured on every fold for the price of few fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.moments import fold_scales, standardise
from featx.heads.rows import Floats, Fold, Numbers
from featx.heads.table import find_row, make_estimator
from featx.heads.targets import Targets
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
    values: Floats
    probabilities: bool = True
    stopped: bool = False


class Sweep(Protocol):
    """Measures many settings of one head together."""

    def __call__(
        self,
        X: Floats,
        y: Numbers,
        folds: Sequence[Fold],
        candidates: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        sample_weight: Floats | None = None,
    ) -> Iterator[HeldOut]:
        """Yield one `HeldOut` for each candidate and fold, in any order."""


@dataclass(frozen=True, slots=True, eq=False)
class SweepData:
    """Checked features (n, d), what is learnt of them, folds, and an estimator a setting."""

    X: Floats
    targets: Targets
    folds: Sequence[Fold]
    settings: Sequence[Any]

    @property
    def least_trained(self) -> int:
        """The number of training rows of the smallest fold."""
        return min(len(train) for train, _ in self.folds)


def swept(
    name: str, *, weighted: bool = False
) -> Callable[[Callable[[SweepData], Iterator[HeldOut]]], Sweep]:
    """Make a `Sweep` of what measures `SweepData`; ``weighted`` where it knows weights of rows."""

    def decorate(measure: Callable[[SweepData], Iterator[HeldOut]]) -> Sweep:
        @wraps(measure)
        def sweep(
            X: Floats,
            y: Numbers,
            folds: Sequence[Fold],
            candidates: Sequence[Mapping[str, Any]],
            *,
            seed: int = 0,
            sample_weight: Floats | None = None,
        ) -> Iterator[HeldOut]:
            refused = "" if weighted else name
            features, codes = checked_data(X, y, folds, sample_weight, weights_refused_by=refused)
            weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
            names = np.arange(int(codes.max()) + 1)
            targets = Targets("classes", names, codes.astype(np.intp), weights)
            settings = core_estimators(name, candidates, seed=seed)
            yield from measure(SweepData(features, targets, folds, settings))

        return sweep

    return decorate


def core_estimators(
    name: str, candidates: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> list[Any]:
    """Return each setting's estimator, without the scaler before it and the calibration around."""
    row = find_row(name)
    return [make_estimator(row, dict(candidate), seed) for candidate in candidates]


def checked_data(
    X: NDArray[np.generic],
    y: Numbers,
    folds: Sequence[Fold],
    sample_weight: Floats | None = None,
    *,
    weights_refused_by: str = "",
) -> tuple[Floats, Numbers]:
    """Return features in float32 or float64, and codes, that a sweep can work on."""
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


def _margins(data: SweepData) -> Iterator[HeldOut]:
    """Fit one setting after another, without the calibration of what is not chosen."""
    y, weights = data.targets.values, data.targets.weights
    scales = fold_scales(data.X, data.folds)
    for fold, ((train, test), scale) in enumerate(zip(data.folds, scales, strict=True)):
        trained, tested = (standardise(data.X[rows], scale) for rows in (train, test))
        known = {} if weights is None else {"sample_weight": weights[train]}
        for number, setting in enumerate(data.settings):
            with few_images_allowed():
                margins = setting.fit(trained, y[train], **known).decision_function(tested)
            if margins.ndim == 1:
                margins = np.column_stack([-margins, margins])
            yield HeldOut(number, fold, margins, probabilities=False)


sweep_svm = swept("svm", weighted=True)(_margins)
sweep_rbf = swept("rbf")(_margins)
