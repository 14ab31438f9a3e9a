"""The nearest class mean: the cheapest head, good from one image a class on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from featx.exceptions import HeadError
from featx.heads.calibrated import fit_temperature
from featx.heads.estimators import Allowed, Scoring, WeightedClassifier
from featx.heads.moments import Moments, fold_moments, standardise
from featx.heads.rows import Doubles, Floats, Numbers, Rows
from featx.heads.steps import row_lengths, unit_rows
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import Targets

_ROUNDING = 1e-12


class NearestMean(WeightedClassifier, Scoring):
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

    _allowed = (
        Allowed(
            "metric",
            "'cosine' or 'euclidean'",
            "knn takes any metric of scikit-learn",
            ("cosine", "euclidean"),
        ),
    )

    def __init__(self, *, metric: str = "cosine") -> None:
        self.metric = metric

    def fit_rows(self, rows: Rows, targets: Targets) -> NearestMean:
        """Fit on rows in memory or in batches, in two passes: means, then the temperature."""
        self._validate_params()
        moments = Moments.of(rows, targets, gram=False)
        if not moments.counts.all():
            raise HeadError("a class has only rows of sample weight 0: leave these rows out")
        self._take(moments.means(), targets.names, moments.dtype)
        codes = targets.values.astype(np.intp)
        _fit_temperatures(rows, [_Judged(self, codes, moments.means(), moments.counts)], targets)
        return self

    def fit_labels(self, rows: Rows, targets: Targets) -> tuple[list[NearestMean], Doubles]:
        """Return a fitted copy for each label, all from the same two passes."""
        self._validate_params()
        moments = Moments.of(rows, targets, gram=False)
        counts = np.stack([moments.weight - moments.counts, moments.counts], axis=1)
        sums = np.stack([moments.whole - moments.sums, moments.sums], axis=1)
        means = sums / counts[:, :, None] + moments.shift
        judged = []
        for label, pair in enumerate(means):
            head = NearestMean(metric=self.metric)._take(pair, np.arange(2), moments.dtype)
            judged.append(
                _Judged(head, targets.values[:, label].astype(np.uint8), pair, counts[label])
            )
        _fit_temperatures(rows, judged, targets)
        return [part.head for part in judged], np.empty(0)

    def scores_without(
        self, X: Floats, codes: Numbers, means: Doubles, counts: Doubles, left_out: Doubles
    ) -> Floats:
        """Return scores (n, k) of training rows, each with the mean of its class without it.

        A row counts as much as ``left_out`` says, of the ``counts`` (k,) of the classes' means.
        """
        scores = self._scores(X)
        size, part = counts[codes, None], left_out[:, None]
        without = (size * means[codes] - part * X) / (size - part)
        scores[np.arange(len(X)), codes] = self._paired(X, without)
        return scores

    def _take(self, means: Doubles, classes: NDArray[np.generic], dtype: DTypeLike) -> NearestMean:
        self.classes_, self.n_features_in_ = classes, means.shape[1]
        self.take_means(means, dtype)
        self.temperature_ = 1.0
        return self

    def take_means(self, means: Doubles, dtype: DTypeLike) -> None:
        """Take the class means (k, d) for what `decision_function` compares with."""
        self.means_ = (unit_rows(means) if self.metric == "cosine" else means).astype(dtype)

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return cosines, or halves of squared distances: (n,) of two classes, else (n, k)."""
        scores = self._scores(self._matrix(X))
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def _scores(self, X: Floats) -> Floats:
        products = X @ self.means_.T
        if self.metric == "cosine":
            products /= row_lengths(X)[:, None]
        else:
            products -= 0.5 * np.einsum("ij,ij->i", self.means_, self.means_)
        return np.asarray(products)

    def _paired(self, X: Floats, means: Floats) -> Floats:
        """Give the score of each row with the mean in the same row."""
        products = np.einsum("ij,ij->i", X, means)
        if self.metric == "cosine":
            return np.asarray(products / row_lengths(X) / row_lengths(means))
        return np.asarray(products - 0.5 * np.einsum("ij,ij->i", means, means))


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """A head, the codes (n,) of all rows, and the means (k, d) and counts (k,) of its classes."""

    head: NearestMean
    codes: NDArray[np.integer]
    means: Doubles
    counts: Doubles


def _fit_temperatures(rows: Rows, parts: Sequence[_Judged], targets: Targets) -> None:
    """Fit the temperature of each head on scores that rows get from the others, in one pass."""
    weights = np.ones(len(targets)) if targets.weights is None else targets.weights
    # Of a row that counts twice, one of the two is taken away.
    left_out = np.minimum(weights, 1)
    repeated = np.zeros(len(targets), dtype=bool)
    for part in parts:
        size = part.counts[part.codes]
        repeated |= size - left_out > _ROUNDING * size
    columns = sum(len(part.counts) for part in parts)
    judged = rows.drawn(np.flatnonzero(repeated), columns)
    scores = [np.empty((len(judged), len(part.counts))) for part in parts]
    codes = [part.codes[judged].astype(np.intp) for part in parts]
    # Of the only row of a class nothing can be taken away.
    able = [
        part.counts[labels] - left_out[judged] > _ROUNDING * part.counts[labels]
        for part, labels in zip(parts, codes, strict=True)
    ]
    for X, numbers in rows.take(judged).batches():
        for part, labels, some, values in zip(parts, codes, able, scores, strict=True):
            inside = some[numbers]
            chosen = numbers[inside]
            values[chosen] = part.head.scores_without(
                X[inside], labels[chosen], part.means, part.counts, left_out[judged[chosen]]
            )
    of_rows = None if targets.weights is None else weights[judged]
    for part, labels, some, values in zip(parts, codes, able, scores, strict=True):
        if some.any():
            part.head.temperature_ = fit_temperature(
                values[some], labels[some], None if of_rows is None else of_rows[some]
            )


@swept("nearest-mean")
def sweep_nearest_mean(data: SweepData) -> Iterator[HeldOut]:
    """Measure metrics of the head ``nearest-mean`` (see `Sweep`): one set of means a fold."""
    parts = fold_moments(data.X, data.targets, data.folds, gram=False)
    for fold, ((_, test), moments) in enumerate(zip(data.folds, parts, strict=True)):
        scale = moments.scale()
        means, tested = moments.standardised(scale).means(), standardise(data.X[test], scale)
        for number, setting in enumerate(data.settings):
            setting.take_means(means, data.X.dtype)
            yield HeldOut(number, fold, setting._scores(tested), probabilities=False)
