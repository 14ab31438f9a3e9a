"""The nearest class mean: the cheapest head, good from one image a class on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.calibrated import fit_temperature
from featx.heads.rows import Fold
from featx.heads.scatter import class_sums
from featx.heads.sweep import HeldOut
from featx.heads.targets import LikeliestClass, both_columns
from featx.heads.validation import checked_weights, validated_training

_METRICS = ("cosine", "euclidean")
_ROUNDING = 1e-12


class NearestMean(LikeliestClass, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The class whose mean is nearest. Every class counts alike, however many images it has.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}, default="cosine"
        By the angle to the mean, or by the distance from it.

    Attributes
    ----------
    means_ : ndarray of shape (k, d)
        Of length 1 under ``"cosine"``.
    temperature_ : float
        What scores are divided by in `predict_proba`.
    classes_ : ndarray of shape (k,)
    n_features_in_ : int

    Notes
    -----
    The temperature is fitted on scores that each image gets from the others, in closed form: with
    n images of mean m in its class, the mean without the image x is (n m - x) / (n - 1). Classes
    of one image have none; where no class has two, the temperature is 1.

    Mensink et al.: "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
    Cost", IEEE TPAMI 35 (2013). `predict` of ``"euclidean"`` is that of scikit-learn's
    ``NearestCentroid``.

    Examples
    --------
    >>> head = NearestMean().fit([[0.0, 1.0], [1.0, 0.0]], ["ants", "bees"])
    >>> head.predict([[0.1, 0.9]]).tolist()
    ['ants']
    """

    def __init__(self, *, metric: str = "cosine") -> None:
        self.metric = metric

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NearestMean:
        """Take the means, and fit the temperature."""
        self._validate_params()
        X, _, self.classes_, codes = validated_training(self, X, y, dtype=[np.float64, np.float32])
        weights = np.ones(len(X))
        if sample_weight is None:
            means, counts = class_means(X, codes)
        else:
            weights = checked_weights(sample_weight, len(X))
            counts = np.bincount(codes, weights)
            if not counts.all():
                raise HeadError("a class has only rows of sample weight 0: leave these rows out")
            means = class_sums(X * weights[:, None], codes, len(counts)) / counts[:, None]
        self.take_means(means, X.dtype)
        self.temperature_ = 1.0
        # Of a row that counts twice, one of the two is taken away.
        left_out = np.minimum(weights, 1)
        rows = np.flatnonzero(counts[codes] - left_out > _ROUNDING * counts[codes])
        if rows.size:
            scores = self.scores_without(X[rows], codes[rows], means, counts, left_out[rows])
            self.temperature_ = fit_temperature(
                scores, codes[rows], None if sample_weight is None else weights[rows]
            )
        return self

    def scores_without(
        self,
        X: NDArray[Any],
        codes: NDArray[np.intp],
        means: NDArray[np.float64],
        counts: NDArray[Any],
        left_out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.floating[Any]]:
        """Scores of training rows, each with the mean of its class taken without it.

        Parameters
        ----------
        X : ndarray of shape (n, d)
        codes : ndarray of shape (n,)
            Their classes, of two rows or more.
        means : ndarray of shape (k, d), float64
        counts : ndarray of shape (k,), int
            Of all training rows, or the sums of their weights.
        left_out : ndarray of shape (n,), optional
            How much of each row is taken away; 1 by default.

        Returns
        -------
        scores : ndarray of shape (n, k)
        """
        scores = self._scores(X)
        size = counts[codes, None]
        part = 1 if left_out is None else left_out[:, None]
        without = (size * means[codes] - part * X) / (size - part)
        scores[np.arange(len(X)), codes] = self._paired(X, without)
        return scores

    def take_means(self, means: NDArray[np.float64], dtype: Any) -> None:
        """Take the class means (k, d) for what `decision_function` compares with."""
        self.means_ = (_unit(means) if self.metric == "cosine" else means).astype(dtype)

    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Cosines with the means, or halves of the squared distances below zero."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Probabilities: the softmax of the scores over the temperature."""
        scores = both_columns(self.decision_function(X))
        probabilities: NDArray[Any] = softmax(scores / self.temperature_, axis=1)
        return probabilities

    def _scores(self, X: NDArray[Any]) -> NDArray[np.floating[Any]]:
        products = X @ self.means_.T
        if self.metric == "cosine":
            products /= _lengths(X)[:, None]
        else:
            products -= 0.5 * np.einsum("ij,ij->i", self.means_, self.means_)
        scores: NDArray[Any] = products
        return scores

    def _paired(self, X: NDArray[Any], means: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Give the score of each row with the mean in the same row."""
        products = np.einsum("ij,ij->i", X, means)
        if self.metric == "cosine":
            cosines: NDArray[Any] = products / _lengths(X) / _lengths(means)
            return cosines
        halves: NDArray[Any] = products - 0.5 * np.einsum("ij,ij->i", means, means)
        return halves

    def _validate_params(self) -> None:
        if self.metric not in _METRICS:
            raise HeadError(
                f"metric must be {' or '.join(map(repr, _METRICS))}, received {self.metric!r}: "
                "knn takes any metric of scikit-learn"
            )


def sweep_nearest_mean(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure metrics of the head ``nearest-mean`` (see `Sweep`): one set of means a fold."""
    from featx.heads.scatter import fold_scatters
    from featx.heads.sweep import checked_data, core_estimators

    X, y = checked_data(X, y, folds, sample_weight, weights_refused_by="nearest-mean")
    settings = core_estimators("nearest-mean", candidates, seed=seed)
    scatters = fold_scatters(X, y, folds, gram=False)
    for fold, ((_, test), scatter) in enumerate(zip(folds, scatters, strict=True)):
        scale = scatter.scale()
        means, tested = scatter.means(scale), scale.apply(X[test])
        for number, setting in enumerate(settings):
            setting.take_means(means, X.dtype)
            yield HeldOut(number, fold, setting._scores(tested), probabilities=False)


def class_means(
    X: NDArray[Any], codes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Give the mean of each class and how many rows it has."""
    counts = np.bincount(codes)
    return class_sums(X, codes, len(counts)) / counts[:, None], counts


def _lengths(rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
    lengths: NDArray[Any] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    lengths[lengths == 0] = 1
    return lengths


def _unit(rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
    unit: NDArray[Any] = rows / _lengths(rows)[:, None]
    return unit
