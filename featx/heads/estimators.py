"""What featx's own estimators share: how they check parameters and rows, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.rows import Floats, Rows
from featx.heads.targets import Targets, best_labels, both_columns
from featx.heads.validation import few_images_allowed, training_targets

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
        with few_images_allowed():
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


class OfModel(OwnClassifier):
    """One that asks a model of scikit-learn."""

    model_: _HasProbabilities

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return probabilities, or shares of the vote, (n, k)."""
        rows = self._matrix(X)
        return self.model_.predict_proba(rows)
