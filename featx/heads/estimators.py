"""What featx's estimators share: checks of rows, labels and parameters, fit and predict."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.rows import Doubles, Floats, Rows
from featx.heads.targets import Targets, best_labels, both_columns
from featx.threads import worthwhile_threads

_LOGGER = logging.getLogger("featx")


def check_folds(y: ArrayLike, folds: int) -> None:
    """Refuse more folds than the smallest class has images.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels, one an image.
    folds : int
        Folds that are asked for.

    Raises
    ------
    HeadError
        There are fewer than 2 folds, or a class has fewer images than folds.

    Examples
    --------
    >>> check_folds(["ants", "ants", "bees"], 2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: class 'bees' has 1 image, 2 folds need 2 of each class: ...
    """
    if folds < 2:
        raise HeadError(f"cross-validation needs at least 2 folds, received {folds}")
    classes, counts = np.unique(np.asarray(y), return_counts=True)
    few = np.flatnonzero(counts < folds)
    if not few.size:
        return
    worst = few[counts[few].argmin()]
    count = int(counts[worst])
    others = f" ({len(few) - 1} more classes have too few)" if len(few) > 1 else ""
    fewer = f"use {count} folds, " if count >= 2 else ""
    raise HeadError(
        f"class {classes[worst : worst + 1].tolist()[0]!r} has {count} "
        f"image{'' if count == 1 else 's'}, {folds} folds need {folds} of each class{others}: "
        f"{fewer}add images or leave the class out"
    )


def refuse_unlearnable(X: object, y: object) -> None:
    """Refuse arrays that no head can learn from, as far as what was given is arrays."""
    if not isinstance(X, np.ndarray | list | tuple) or y is None:
        return
    _require_same_length(X, y)
    try:
        features, labels = np.asarray(X), np.asarray(y)
    except ValueError:
        return
    if features.ndim != 2 or features.dtype.kind not in "fiub" or features.size == 0:
        return
    require_finite(features)
    if labels.ndim != 1 or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        return
    try:
        classes = np.unique(labels)
    except TypeError:
        return
    require_two_classes(classes)
    _require_variation(features)


@contextmanager
def few_images_allowed() -> Iterator[None]:
    """Silence scikit-learn's guess that classes of one or two images are a regression."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


def checked_weights(sample_weight: ArrayLike, rows: int) -> Doubles:
    """Return weights of rows, shape (n,)."""
    weights: Doubles = np.asarray(sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(rows, float(weights))
    if weights.shape != (rows,):
        raise HeadError(
            f"expected one sample weight for each of {rows} rows, received weights of shape "
            f"{weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise HeadError(
            "expected sample weights that are finite, not negative and not all zero, received "
            f"{weights.min()} to {weights.max()}"
        )
    return weights


def training_targets(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike | None,
    sample_weight: ArrayLike | None = None,
    *,
    dtype: Sequence[type[np.floating]],
) -> tuple[Floats, Targets]:
    """Return (X, y) as a matrix and classes, and record the width on the estimator."""
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data

    if y is not None:
        _require_same_length(X, y)
    features, labels = validate_data(estimator, X, y, dtype=list(dtype), ensure_all_finite=False)
    with few_images_allowed():
        check_classification_targets(labels)
    require_finite(features)
    targets = Targets.of_classes(labels)
    require_two_classes(targets.names)
    if sample_weight is None:
        return features, targets
    return features, replace(targets, weights=checked_weights(sample_weight, len(features)))


def check_labels(y: object, rows: int) -> NDArray[np.number]:
    """Return a matrix of 0 and 1 with so many rows, (n, labels), of whatever type it has."""
    labels = np.asarray(y)
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise HeadError(
            f"several labels an image are a matrix of shape (images, labels), received shape "
            f"{labels.shape}: pass 1 where an image has a label and 0 where not"
        )
    if len(labels) != rows:
        raise HeadError(
            f"expected one row of labels a feature row, received {rows} rows and {len(labels)} "
            "rows of labels: take both from the same dataset, in the same order"
        )
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise HeadError(
            f"labels must be 0 or 1, received {np.unique(labels)[:5].tolist()}: pass 1 where an "
            "image has a label and 0 where not"
        )
    return labels


def check_values(y: object, rows: int | None = None) -> Doubles:
    """Return numbers to learn, (n, k), one row a feature row and none of them the same in all."""
    numbers = np.asarray(y)
    if numbers.dtype.kind == "O":
        with suppress(TypeError, ValueError):
            numbers = numbers.astype(np.float64)
    if numbers.dtype.kind == "c":
        raise HeadError("Complex data not supported: a regression learns real numbers")
    if numbers.dtype.kind not in "biuf":
        raise HeadError(
            "a regression learns numbers, received "
            f"{_shown_value(numbers)}: give one number a row, or learn classes without "
            "--regression (with ImageClassifier)"
        )
    if numbers.ndim not in (1, 2) or 0 in numbers.shape:
        raise HeadError(
            "expected numbers of shape (n,), or (n, k) of several a row, received shape "
            f"{numbers.shape}"
        )
    if rows is not None and len(numbers) != rows:
        raise HeadError(
            f"expected a number for each feature row, received {rows} rows and {len(numbers)} "
            "numbers: take both from the same dataset, in the same order"
        )
    values = numbers.astype(np.float64).reshape(len(numbers), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise HeadError(
            f"numbers to learn must be finite, received NaN or inf in {bad.size} of {len(values)} "
            f"rows (the first is row {bad[0]}): leave these rows out, or correct them"
        )
    if len(values) == 1:
        raise HeadError("1 sample only: a regression needs two rows with different numbers or more")
    constant = np.flatnonzero(values.max(axis=0) == values.min(axis=0))
    if constant.size:
        which = f" in column {constant[0]}" if values.shape[1] > 1 else ""
        raise HeadError(
            f"all {len(values)} rows have the number {values[0, constant[0]]:g}{which}: "
            "there is nothing to learn; take numbers that differ"
        )
    return values


def _shown_value(values: NDArray[np.generic]) -> str:
    """Return how an error shows the first of some values that are no numbers."""
    first = values.ravel()[:1].tolist()
    return repr(first[0])[:60] if first else "none"


def _require_same_length(X: object, y: object) -> None:
    rows, labels = _length(X), _length(y)
    if rows is not None and labels is not None and rows != labels:
        raise HeadError(
            f"expected one label a feature row, received {rows} rows and {labels} labels: "
            "take both from the same dataset, in the same order"
        )


def _length(values: object) -> int | None:
    if shape := getattr(values, "shape", ()):
        return int(shape[0])
    return len(values) if isinstance(values, Sized) and not hasattr(values, "shape") else None


def require_finite(X: NDArray[np.generic]) -> None:
    """Refuse features that hold NaN or infinity."""
    if X.dtype.kind not in "fc":
        return
    # The sum is one pass without a copy; only when it is odd are the rows looked at singly.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(X, dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if bad.size:
        raise HeadError(
            f"features must be finite, received NaN or inf in {bad.size} of {len(X)} rows "
            f"(the first is row {bad[0]}): leave these rows out or extract them again"
        )


def require_two_classes(classes: NDArray[np.generic]) -> None:
    """Refuse a single class."""
    if len(classes) < 2:
        raise HeadError(
            f"one class only: {classes.tolist()[0]!r}; a classifier needs at least two: "
            "add images of another class"
        )


def _require_variation(X: NDArray[np.generic]) -> None:
    constant = int(np.count_nonzero(X.max(axis=0) == X.min(axis=0)))
    if constant == X.shape[1]:
        raise HeadError(
            f"every column of the features is constant: all {len(X)} rows are the same, so that "
            "nothing tells the classes apart; look at the images, or take another layer"
        )
    if constant:
        _LOGGER.info("%d of %d columns are constant and tell nothing", constant, X.shape[1])


ABOVE_0, BELOW_1 = float(np.nextafter(0, 1)), float(np.nextafter(1, 0))


@dataclass(frozen=True)
class Allowed:
    """What a parameter may be: words, or something of a kind, of numbers those within bounds."""

    name: str
    text: str
    advice: str = ""
    words: tuple[object, ...] = ()
    kind: type | None = None
    low: float = -np.inf
    high: float = float(np.finfo(np.float64).max)

    def require(self, value: object) -> None:
        """Refuse a value that is not allowed."""
        if any(value is word or (isinstance(value, str) and value == word) for word in self.words):
            return
        if self.kind is not None and isinstance(value, self.kind) and not isinstance(value, bool):
            inside = not isinstance(value, Real) or self.low <= value <= self.high  # type: ignore[operator]
            if inside:
                return
        advice = f": {self.advice}" if self.advice else ""
        raise HeadError(f"{self.name} must be {self.text}, received {value!r}{advice}")


def from_1(name: str, advice: str) -> Allowed:
    """Return what a count may be."""
    return Allowed(name, "an integer of at least 1", advice, kind=Integral, low=1)


CLASS_WEIGHT = Allowed(
    "class_weight",
    'None, "balanced" or a dict of label to weight',
    "leave it out for equal weights",
    (None, "balanced"),
    Mapping,
)


class OwnClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of features, which learns by its ``fit_rows``."""

    classes_: NDArray[np.generic]
    n_features_in_: int
    _dtypes: tuple[type[np.floating], ...] = (np.float64, np.float32)
    _allowed: tuple[Allowed, ...] = ()

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on features (n, d) and labels (n,).

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        return self._fit(X, y, None)

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the labels (n,) of the highest probability or margin; of equal ones, the first."""
        answer = getattr(self, "predict_proba", None) or self.decision_function
        return best_labels(answer(X), self.classes_)

    def fit_rows(self, rows: Rows, targets: Targets) -> Self:
        """Fit on rows in memory or in batches."""
        raise NotImplementedError

    def _fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> Self:
        self._validate_params()
        features, targets = training_targets(self, X, y, sample_weight, dtype=self._dtypes)
        with few_images_allowed(), worthwhile_threads(features.size):
            return self.fit_rows(Rows.of(features), targets)

    def _validate_params(self) -> None:
        """Check values; scikit-learn's own hook of this name, which `make_head` calls too."""
        for allowed in self._allowed:
            allowed.require(getattr(self, allowed.name))

    def _matrix(self, X: ArrayLike) -> Floats:
        """Return rows (n, d) for a fitted estimator to look at."""
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, reset=False, dtype=list(self._dtypes)))


class WeightedClassifier(OwnClassifier):
    """One that knows weights of rows."""

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit on features (n, d), labels (n,) and what each row counts (n,).

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        return self._fit(X, y, sample_weight)


class Scoring(OwnClassifier):
    """One whose probabilities are the softmax of its scores over a temperature."""

    temperature_: float

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return scores: (n,) of two classes, else (n, k)."""
        raise NotImplementedError

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities (n, k), columns in the order of ``classes_``."""
        scores = both_columns(self.decision_function(X))
        return np.asarray(softmax(scores / getattr(self, "temperature_", 1.0), axis=1))


class LinearScoring(Scoring):
    """One whose scores are linear."""

    coef_: Floats
    intercept_: Floats

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return linear scores: (n,) of two classes, else (n, k)."""
        scores: Floats = self._matrix(X) @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores


class _HasProbabilities(Protocol):
    def predict_proba(self, X: ArrayLike) -> Floats: ...


class OwnRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor on features, which learns one or several numbers a row by its ``fit_rows``."""

    n_features_in_: int
    _dtypes: tuple[type[np.floating], ...] = (np.float64, np.float32)
    _allowed: tuple[Allowed, ...] = ()

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on features (n, d) and numbers, (n,) or (n, k).

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        return self._fit(X, y, None)

    def predict(self, X: ArrayLike) -> Floats:
        """Return the numbers of each row: (n,) where one was learnt, else (n, k)."""
        check_is_fitted(self)
        rows = np.asarray(validate_data(self, X, reset=False, dtype=list(self._dtypes)))
        values = self._values(rows)
        return values[:, 0] if values.shape[1] == 1 else values

    def fit_rows(self, rows: Rows, targets: Targets) -> Self:
        """Fit on rows in memory or in batches."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _values(self, rows: Floats) -> Floats:
        """Return the numbers of rows, (n, k)."""
        raise NotImplementedError

    def _fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> Self:
        self._validate_params()
        kinds = {"dtype": list(self._dtypes), "ensure_all_finite": False}
        if y is None:
            validate_data(self, X, y, **kinds)
        _require_same_length(X, y)
        features = validate_data(self, X, **kinds)
        require_finite(features)
        targets = Targets.of_values(check_values(y, len(features)))
        if sample_weight is not None:
            targets = replace(targets, weights=checked_weights(sample_weight, len(features)))
        with worthwhile_threads(features.size):
            return self.fit_rows(Rows.of(features), targets)

    def _validate_params(self) -> None:
        """Check values; scikit-learn's own hook of this name, which `make_head` calls too."""
        for allowed in self._allowed:
            allowed.require(getattr(self, allowed.name))


class WeightedRegressor(OwnRegressor):
    """One that knows weights of rows."""

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit on features (n, d), numbers (n,) or (n, k), and what each row counts (n,).

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        return self._fit(X, y, sample_weight)


class OfModel(OwnClassifier):
    """One that asks a model of scikit-learn."""

    model_: _HasProbabilities

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities, or shares of the vote, (n, k)."""
        rows = self._matrix(X)
        return self.model_.predict_proba(rows)
