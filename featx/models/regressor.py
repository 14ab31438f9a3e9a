"""`ImageRegressor`: a frozen backbone and a head for numbers, as one scikit-learn regressor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import DatasetError, FeaturesError
from featx.heads.estimators import check_values
from featx.heads.learning import fit_weighted
from featx.heads.making import make_head
from featx.heads.rows import Doubles, Floats
from featx.images.values import VALUE
from featx.models.image_features import PerBackbone
from featx.models.image_model import Examples, ImageModel
from featx.selection.splits import repeated_folds
from featx.selection.value_metrics import COVERAGE, kept_residuals
from featx.spec import FeatureSpec, ImagePolicy, ViewPolicy


class ImageRegressor(RegressorMixin, ImageModel, BaseEstimator):  # type: ignore[misc]
    """A regressor of images: features of a frozen backbone, and a head that learns numbers.

    Parameters
    ----------
    backbone, weights, tap, input_size, preprocessing, image
        As of `ImageClassifier`.
    head : str or estimator, default "ridge"
        A name of ``featx.heads.head_names(regression=True)``, such as ``"knn"`` or
        ``"dense:256"``, or any scikit-learn regressor.
    views, average_views, view_policy, cache, engine, batch_size, trust
        As of `ImageClassifier`; with `average_views` a prediction is the mean of the numbers.
    interval_folds : int, default 5
        Number of folds in which `fit` measures how far predictions are off, for the intervals of
        `predict_interval`: the head is trained so many times more. 0 for none.
    random_state : int, default 0
        Seed of the head and of the folds.

    Attributes
    ----------
    value_names_ : tuple of str
        What the numbers are called.
    n_features_in_ : int
        Number of features an image.
    head_ : estimator
        The head, fitted.
    specs_, spec_
        As of `ImageClassifier`.
    spread_ : ndarray of shape (k,)
        Standard deviation of each number in training.
    residuals_ : ndarray of shape (m, k) or None
        Absolute errors on images that the heads of the folds had not seen, ascending.
    training_, novelty_
        As of `ImageClassifier`.

    Examples
    --------
    On files:

    >>> reg = ImageRegressor("mobilenet_v2", cache="cache/")  # doctest: +SKIP
    >>> reg.fit(["a.jpg", "b.jpg"], [3.5, 7.0]).predict(["new.jpg"])  # doctest: +SKIP
    array([4.2])

    On features that were extracted before:

    >>> X = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    >>> reg = ImageRegressor(head="ridge:alpha=1").fit(X, X[:, 0] + 7)
    >>> reg.score(X, X[:, 0] + 7) > 0.99
    True
    >>> low, high = reg.predict_interval(X[:1])
    """

    __metadata_request__score = {"sample_weight": False}  # noqa: RUF012
    multilabel = False
    regression = True

    def __init__(
        self,
        backbone: str | Sequence[str] = "tiny",
        head: Any = "ridge",
        *,
        weights: str | os.PathLike[str] | PerBackbone | None = None,
        tap: str | Sequence[str] | PerBackbone = "avg",
        input_size: int | tuple[int, int] | PerBackbone | None = None,
        preprocessing: str | PerBackbone | None = None,
        image: ImagePolicy | None = None,
        views: int = 0,
        average_views: bool = False,
        view_policy: str | ViewPolicy | None = None,
        cache: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        batch_size: int | str = "auto",
        interval_folds: int = 5,
        random_state: int = 0,
        trust: bool = False,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.weights = weights
        self.tap = tap
        self.input_size = input_size
        self.preprocessing = preprocessing
        self.image = image
        self.views = views
        self.average_views = average_views
        self.view_policy = view_policy
        self.cache = cache
        self.engine = engine
        self.batch_size = batch_size
        self.interval_folds = interval_folds
        self.random_state = random_state
        self.trust = trust

    def fit(self, X: Any, y: ArrayLike, sample_weight: Any = None) -> ImageRegressor:
        """Train the head, and measure how far it is off.

        Parameters
        ----------
        X : list of paths, ndarray of shape (n, h, w, c), or ndarray of shape (n, d)
            As of `ImageClassifier.fit`.
        y : array-like of shape (n,), or (n, k)
            One number an image, or several, all of them finite.
        sample_weight : array-like of shape (n,), optional
            What each image counts, not negative. For ``ridge``, ``svm``, ``forest``,
            ``extra-trees``, ``dense``, and estimators that take weights.

        Raises
        ------
        ImageError
            If an image cannot be read.
        HeadError
            If there is nothing to learn from, for instance text or numbers that are all the same.
        """
        if y is None:
            validate_data(self, X, y)
        values = check_values(y)
        examples = self._examples(X, values, sample_weight, multi_output=True)
        check_values(examples.y)
        self._several = np.asarray(y).ndim == 2
        made = make_head(self.head, seed=self.random_state, regression=True)
        self.residuals_ = self._left_out(made, examples)
        head = clone(made)
        _fit(head, examples, np.arange(len(examples.X)))
        names = [str(number) for number in range(values.shape[1])] if self._several else [VALUE]
        self.learn_values(head, values, names)
        return self

    def learn_values(self, head: Any, values: Doubles, names: Any) -> None:
        """Take a head that was fitted on numbers (n, k), with what these are called."""
        self.head_, self.value_names_ = head, tuple(map(str, names))
        self.spread_ = values.std(axis=0)

    def take_head(
        self,
        head: Any,
        specs: Sequence[FeatureSpec],
        *,
        n_features: int,
        names: Any,
        values: Doubles,
    ) -> None:
        """Take a head that was fitted on features of specifications, in place of `fit`."""
        self.learn_values(head, values, names)
        self._take_features(specs, n_features)
        self._several = len(self.value_names_) > 1

    def predict(self, X: Any) -> Floats:
        """Return the number of each row, (n,), or the numbers, (n, k)."""
        check_is_fitted(self, "head_")
        return self._shaped(self.average_values(self._parts(X)))

    def predict_interval(self, X: Any, coverage: float = COVERAGE) -> tuple[Floats, Floats]:
        """Return the lower and the upper ends of intervals that hold the true number.

        Parameters
        ----------
        X : as for `predict`
        coverage : float, default 0.9
            Share of images whose true number lies within, in the long run.

        Returns
        -------
        low, high : ndarray of shape (n,) or (n, k)

        Raises
        ------
        FeaturesError
            If no errors were measured in training (``interval_folds=0``).

        Notes
        -----
        See `featx.selection.value_metrics.half_widths`: every interval of a number is equally wide.
        """
        check_is_fitted(self, "head_")
        if self.residuals_ is None:
            raise FeaturesError(
                "the model does not know how far its predictions are off: train it with "
                "interval_folds=5, or featx.train with cv=5"
            )
        values = self.average_values(self._parts(X))
        low, high = self.interval(values, coverage)
        return self._shaped(low), self._shaped(high)

    def _shaped(self, values: Floats) -> Floats:
        return values if self._several else values[:, 0]

    def _left_out(self, made: Any, examples: Examples) -> Doubles | None:
        """Return the errors of the heads of folds on the images that each has not seen."""
        count = examples.images
        truth = np.asarray(examples.y[:count], np.float64).reshape(count, -1)
        if not self.interval_folds:
            return None
        try:
            folds = repeated_folds(
                truth,
                folds=self.interval_folds,
                groups=examples.groups[:count],
                seed=self.random_state,
            )
        except DatasetError:
            return None
        copies = np.arange(len(examples.X) // count)[:, None] * count
        answers = np.empty_like(truth)
        for train, test in folds:
            if (truth[train].max(axis=0) == truth[train].min(axis=0)).any():
                return None
            head = clone(made)
            _fit(head, examples, (train + copies).ravel())
            parts = [examples.X[test + copy] for copy in copies[: 1 + self.views_averaged, 0]]
            answers[test] = np.mean(
                [head.predict(part).reshape(len(test), -1) for part in parts], axis=0
            )
        return kept_residuals(truth, answers)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _fit(head: Any, examples: Examples, rows: Any) -> None:
    X, y = examples.X[rows], np.asarray(examples.y[rows], np.float64)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if examples.weights is None:
        head.fit(X, y)
    else:
        fit_weighted(head, X, y, examples.weights[rows])
