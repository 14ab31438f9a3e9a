"""Linear discriminant analysis with shrinkage, down to one image a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import ledoit_wolf
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.rows import Fold
from featx.heads.scatter import Scale, Scatter, fold_scatters
from featx.heads.shifted import ShiftedSystems
from featx.heads.sweep import HeldOut, checked_data, core_estimators
from featx.heads.targets import LikeliestClass, both_columns
from featx.heads.validation import validated_training

_FEW = 5


class ShrinkageLDA(LikeliestClass, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """LDA whose within-class covariance is shrunk, as wide features and few images need.

    Parameters
    ----------
    shrinkage : "auto" or float in [0, 1], default="auto"
        ``"auto"`` is the Ledoit-Wolf estimate of each class; a number goes from the empirical
        covariance (0) to a multiple of the identity (1).
    class_weight : "balanced" or dict, default=None
        How often a class is expected, relative to its share of the images; ``"balanced"`` expects
        all alike. The same as scikit-learn's ``priors``, for the covariance too.

    Attributes
    ----------
    coef_ : ndarray of shape (k, d), or (1, d) for two classes
    intercept_ : ndarray of shape (k,), or (1,) for two classes
    classes_ : ndarray of shape (k,)
    n_features_in_ : int

    Notes
    -----
    The answers are those of ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)`` (a test
    compares them) wherever every class has five images. That one refuses one image a class, warns
    for a single class with one, and at two images a class fell to an accuracy of 0.12 where 0.21
    is to be had (MobileNetV2 features of CIFAR-10, 10 classes): its estimate is made class by
    class, and two images say nothing about 1,280 variances. So the classes with fewer than five
    images pool their deviations from their own means into one estimate, and where no class has
    two images the covariance is the identity, which makes it the nearest class mean. It also
    solves by Cholesky where scikit-learn takes a singular value decomposition.

    Ledoit, Wolf: "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88 (2004), 365-411.

    Examples
    --------
    >>> head = ShrinkageLDA().fit([[0.0, 1.0], [1.0, 0.0]], ["ants", "bees"])
    >>> head.predict([[0.1, 0.9]]).tolist()
    ['ants']
    """

    # Models saved before it existed have none of their own.
    class_weight: Any = None

    def __init__(self, *, shrinkage: str | float = "auto", class_weight: Any = None) -> None:
        self.shrinkage = shrinkage
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> ShrinkageLDA:
        """Estimate means and covariance, and solve for the coefficients."""
        self._validate_params()
        X, _, self.classes_, codes = validated_training(self, X, y, dtype=[np.float64, np.float32])
        counts = np.bincount(codes)
        means = np.stack([X[codes == k].mean(axis=0, dtype=np.float64) for k in range(len(counts))])
        shares = class_shares(self.class_weight, counts, self.classes_)
        covariance = self._covariance(X, codes, counts, shares, means)
        self.solve(means, covariance, shares, X.dtype)
        return self

    def solve(
        self,
        means: NDArray[np.float64],
        covariance: NDArray[np.float64],
        shares: NDArray[np.float64],
        dtype: Any,
    ) -> None:
        """Solve for the coefficients.

        Parameters
        ----------
        means : ndarray of shape (k, d), float64
        covariance : ndarray of shape (d, d), float64
            Within classes, shrunk.
        shares : ndarray of shape (k,), float64
            See `class_shares`.
        dtype : dtype
            Of the coefficients.
        """
        try:
            factor = scipy.linalg.cho_factor(covariance, check_finite=False)
            coef = scipy.linalg.cho_solve(factor, means.T, check_finite=False).T
        except scipy.linalg.LinAlgError:
            coef = scipy.linalg.lstsq(covariance, means.T)[0].T
        intercept = -0.5 * np.sum(coef * means, axis=1) + np.log(shares)
        if len(means) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_ = coef.astype(dtype)
        self.intercept_ = intercept.astype(dtype)

    def decision_function(self, X: Any) -> NDArray[np.floating[Any]]:
        """Logarithms of the classes' likelihoods times their shares, up to a constant a row."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores: NDArray[Any] = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Probabilities of the classes under equal Gaussian covariances."""
        scores = both_columns(self.decision_function(X))
        probabilities: NDArray[Any] = softmax(scores, axis=1)
        return probabilities

    def _covariance(
        self,
        X: NDArray[Any],
        codes: NDArray[np.intp],
        counts: NDArray[np.intp],
        shares: NDArray[np.float64],
        means: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        width, of_row = X.shape[1], row_shares(counts, shares)
        covariance = np.zeros((width, width))
        for group in covariance_groups(counts):
            rows = np.flatnonzero(np.isin(codes, group))
            deviations = X[rows] - means[codes[rows]]
            if deviations.any():
                covariance += len(rows) * of_row[group[0]] * self._shrunk(deviations)
        return covariance if covariance.any() else np.eye(width)

    def _shrunk(self, deviations: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.shrinkage == "auto":
            spread = np.sqrt(np.mean(deviations**2, axis=0))
            spread[spread == 0] = 1.0
            scaled: NDArray[np.float64] = ledoit_wolf(deviations / spread, assume_centered=True)[0]
            rescaled: NDArray[np.float64] = spread[:, None] * scaled * spread
            return rescaled
        part = float(self.shrinkage)
        covariance: NDArray[np.float64] = (1 - part) * (deviations.T @ deviations) / len(deviations)
        covariance.flat[:: len(covariance) + 1] += part * np.mean(deviations**2)
        return covariance

    def _validate_params(self) -> None:
        weight = self.class_weight
        if not (weight is None or weight == "balanced" or isinstance(weight, Mapping)):
            raise HeadError(
                f'class_weight must be None, "balanced" or a dict of label to weight, received '
                f"{weight!r}: leave it out"
            )
        value = self.shrinkage
        if value == "auto":
            return
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise HeadError(
                f'shrinkage must be "auto" or a number from 0 to 1, received {value!r}: '
                'leave it at "auto"'
            )


def class_shares(
    class_weight: Any, counts: NDArray[np.intp], classes: NDArray[Any]
) -> NDArray[np.float64]:
    """Give how often each class is expected."""
    weighted = counts.astype(np.float64)
    if class_weight is not None:
        labels = np.repeat(classes, counts)
        weighted *= compute_class_weight(class_weight, classes=classes, y=labels)
    shares: NDArray[np.float64] = weighted / weighted.sum()
    return shares


def row_shares(counts: NDArray[np.intp], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give what one image of each class weighs in the covariance within classes."""
    weights = np.zeros(len(counts))
    for group in covariance_groups(counts):
        weights[group] = shares[group].sum() / counts[group].sum()
    total = float(counts @ weights)
    return weights / total if total else weights


def covariance_groups(counts: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Put the classes that are too small for an estimate of their own together."""
    groups = [np.array([k]) for k in np.flatnonzero(counts >= _FEW)]
    few = np.flatnonzero((counts >= 2) & (counts < _FEW))
    return [*groups, few] if few.size else groups


def sweep_lda(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure shrinkages of the head ``lda`` (see `Sweep`).

    Notes
    -----
    With S the covariance within classes and m the mean of its diagonal, the shrunk one is
    ``(1 - s) S + s m I``, which is ``1 - s`` times S plus a multiple of the identity: the systems
    of all shrinkages are `ShiftedSystems`. With fewer rows than columns they are solved among the
    rows, by Woodbury's identity. Without class weights the sums of a fold are those of all rows
    less those of its testing rows.
    """
    X, y = checked_data(X, y, folds, sample_weight, weights_refused_by="lda")
    settings = core_estimators("lda", candidates, seed=seed)
    groups: dict[str, tuple[Any, dict[int, float]]] = {}
    for number, setting in enumerate(settings):
        if setting.shrinkage != "auto":
            weight = setting.class_weight
            groups.setdefault(repr(weight), (weight, {}))[1][number] = float(setting.shrinkage)
    tall = min(len(train) for train, _ in folds) >= X.shape[1]
    scatters = fold_scatters(X, y, folds, gram=tall and repr(None) in groups)
    for fold, ((train, test), scatter) in enumerate(zip(folds, scatters, strict=True)):
        scale = scatter.scale()
        tested = scale.apply(X[test])
        for number, setting in enumerate(settings):
            if setting.shrinkage == "auto":
                fitted = setting.fit(scale.apply(X[train]), y[train])
                scores = both_columns(fitted.decision_function(tested))
                yield HeldOut(number, fold, scores, probabilities=False)
        means, counts = scatter.means(scale), scatter.counts.astype(np.intp)
        for weight, shrinkages in groups.values():
            shares = class_shares(weight, counts, np.arange(len(counts)))
            values = np.array(list(shrinkages.values()))
            if weight is None and scatter.gram is not None:
                coefs = _from_scatter(scatter, scale, means, values)
            else:
                rows = np.sqrt(row_shares(counts, shares)[y[train]])[:, None]
                deviations = scale.apply(X[train]) - means[y[train]]
                coefs = _from_rows(deviations * rows, means, values)
            for number, coef in zip(shrinkages, coefs, strict=True):
                intercept = -0.5 * np.einsum("ij,ji->i", means, coef) + np.log(shares)
                scores = tested @ coef.astype(X.dtype) + intercept.astype(X.dtype)
                yield HeldOut(number, fold, scores, probabilities=False)


def _from_scatter(
    scatter: Scatter, scale: Scale, means: NDArray[np.float64], shrinkages: NDArray[np.float64]
) -> Iterator[NDArray[np.floating[Any]]]:
    assert scatter.gram is not None
    dtype = scatter.gram.dtype
    # The sums of a class are of shifted rows; its mean takes out the same shift.
    between = (scatter.sums / np.sqrt(scatter.counts)[:, None]).astype(dtype)
    within = scatter.gram - between.T @ between
    within /= np.outer(scale.deviation, scale.deviation).astype(dtype)
    within /= dtype.type(scatter.counts[scatter.counts > 1].sum() or 1)
    yield from _solved(within, means.T, shrinkages, least=float(np.finfo(dtype).eps))


def _from_rows(
    deviations: NDArray[np.float64], means: NDArray[np.float64], shrinkages: NDArray[np.float64]
) -> Iterator[NDArray[np.floating[Any]]]:
    rows, width = deviations.shape
    spread = float(np.sum(deviations**2)) / width
    if rows >= width or spread == 0 or shrinkages.min() == 0:
        yield from _solved(deviations.T @ deviations, means.T, shrinkages, least=0.0)
        return
    systems = ShiftedSystems(deviations @ deviations.T)
    inner = systems.rotate(deviations @ means.T)
    for part in shrinkages:
        if part == 1:
            yield means.T / spread
            continue
        shift = part / (1 - part) * spread
        solved = systems.unrotate(systems.solve_rotated(inner, shift))
        yield (means.T - deviations.T @ solved) / (shift * (1 - part))


def _solved(
    covariance: NDArray[np.floating[Any]],
    means: NDArray[np.float64],
    shrinkages: NDArray[np.float64],
    *,
    least: float,
) -> Iterator[NDArray[np.floating[Any]]]:
    spread = float(np.trace(covariance)) / len(covariance)
    if spread <= least:
        # No class varies: every direction counts alike, as in the estimator.
        yield from (means for _ in shrinkages)
        return
    partial = shrinkages < 1
    shifts = shrinkages[partial] / (1 - shrinkages[partial]) * spread
    found = iter(ShiftedSystems(covariance).solve(means, shifts) if partial.any() else ())
    for part in shrinkages:
        yield next(found) / (1 - part) if part < 1 else means / spread
