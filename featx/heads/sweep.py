"""What a sweep is: many settings of one head, measured on every fold for the price of few fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.estimators import few_images_allowed, require_finite
from featx.heads.moments import fold_scales, standardise
from featx.heads.rows import Floats, Fold, Numbers
from featx.heads.table import find_row, make_estimator
from featx.heads.targets import Kind, Targets, both_columns
from featx.threads import worthwhile_threads


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What one setting says of the rows of one fold that it has not seen.

    ``values`` (m, k) have a column a class, in the order of the codes: probabilities, or margins of
    which only the order counts. Of a regression they are the predicted numbers. Those of a setting
    that was ``stopped``, since it could no longer win, are of an unfinished fit.
    """

    candidate: int
    fold: int
    values: Floats
    probabilities: bool = True
    stopped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SweepData:
    """Checked features (n, d), what is learnt of them, folds, and an estimator a setting.

    Estimators are without the scaler before a head and the calibration around it.
    """

    X: Floats
    targets: Targets
    folds: Sequence[Fold]
    settings: Sequence[Any]

    @property
    def least_trained(self) -> int:
        """The number of training rows of the smallest fold."""
        return min(len(train) for train, _ in self.folds)

    def scaled(self) -> Iterator[tuple[int, Numbers, Floats, Floats]]:
        """Yield a fold's number, its training rows, and its features for training and testing."""
        scales = fold_scales(self.X, self.folds)
        for fold, ((train, test), scale) in enumerate(zip(self.folds, scales, strict=True)):
            yield fold, train, standardise(self.X[train], scale), standardise(self.X[test], scale)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Measures many settings of one head together, some with weights of rows."""

    name: str
    measure: Callable[[SweepData], Iterator[HeldOut]]
    weighted: bool
    learns: tuple[Kind, ...]

    def __call__(
        self,
        X: NDArray[np.generic],
        y: NDArray[np.number],
        folds: Sequence[Fold],
        candidates: Sequence[Mapping[str, object]],
        *,
        seed: int = 0,
        sample_weight: Floats | None = None,
    ) -> Iterator[HeldOut]:
        """Yield one `HeldOut` for each candidate and fold, in any order."""
        if sample_weight is not None and not self.weighted:
            raise HeadError(
                f"{self.name!r} knows no weights of rows: leave sample_weight out, or use "
                "logistic, ridge or svm"
            )
        features, codes = np.asarray(X), np.asarray(y)
        if features.dtype not in (np.float32, np.float64):
            features = features.astype(np.float32)
        several = codes.ndim == 2 and self.learns != ("classes",)
        if features.ndim != 2 or codes.shape[: codes.ndim - several] != features.shape[:1]:
            raise HeadError(
                "expected a matrix of features and a code a row, received shapes "
                f"{features.shape} and {codes.shape}: take both from the same dataset"
            )
        require_finite(features)
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        regression = "values" in self.learns
        if regression:
            targets = Targets.of_values(codes, weights)
        elif several:
            targets = Targets.of_labels(codes, weights)
        else:
            names = np.arange(int(codes.max()) + 1)
            targets = Targets("classes", names, codes.astype(np.intp), weights)
            _require_every_class(targets, folds)
        row = find_row(self.name, regression=regression)
        settings = [make_estimator(row, dict(candidate), seed) for candidate in candidates]
        with worthwhile_threads(features.size):
            yield from self.measure(SweepData(features, targets, folds, settings))


def swept(
    name: str, *, weighted: bool = False, learns: tuple[Kind, ...] = ("classes",)
) -> Callable[[Callable[[SweepData], Iterator[HeldOut]]], Sweep]:
    """Make a `Sweep` of what measures `SweepData`."""
    return lambda measure: Sweep(name, measure, weighted, learns)


def _require_every_class(targets: Targets, folds: Sequence[Fold]) -> None:
    for number, (train, _) in enumerate(folds):
        counts = np.bincount(targets.values[train].astype(np.intp), minlength=targets.columns)
        missing = np.flatnonzero(counts == 0)
        if missing.size:
            raise HeadError(
                f"class {missing[0]} has no row in the training part of fold {number}: use fewer "
                "folds, or leave out classes with few images"
            )


def _margins(data: SweepData) -> Iterator[HeldOut]:
    """Fit one setting after another, without the calibration of what is not chosen."""
    for fold, train, trained, tested in data.scaled():
        targets = data.targets.take(train)
        for number, setting in enumerate(data.settings):
            known = {} if targets.weights is None else {"sample_weight": targets.weights}
            with few_images_allowed():
                margins = setting.fit(trained, targets.values, **known).decision_function(tested)
            margins = both_columns(margins, mirrored=True)
            yield HeldOut(number, fold, margins, probabilities=False)


sweep_svm = swept("svm", weighted=True)(_margins)
sweep_rbf = swept("rbf")(_margins)
