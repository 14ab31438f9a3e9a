"""Ensembles of trees that many classes do not make too large."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import HeadError
from featx.heads.targets import LikeliestClass
from featx.heads.validation import validated_training

_MOST = 200
_FEWEST = 10
_BUDGET_BYTES = 512 * 2**20


class TreeEnsemble(LikeliestClass, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn's random forest or extremely randomised trees, in a bounded size.

    Parameters
    ----------
    splits : {"best", "random"}, default="best"
        ``"best"`` is a random forest, ``"random"`` are extremely randomised trees, which train in
        a fraction of the time.
    n_estimators : "auto" or int, default="auto"
        ``"auto"`` is 200, fewer where leaves with a number for each class would take more than
        512 MiB, and at least 10.
    max_depth, min_samples_leaf, min_weight_fraction_leaf, max_features
        As in scikit-learn.
    class_weight, n_jobs, random_state
        As in scikit-learn.

    Attributes
    ----------
    model_ : RandomForestClassifier or ExtraTreesClassifier
    classes_ : ndarray of shape (k,)
    n_features_in_ : int

    Notes
    -----
    Time and size of a tree are proportional to rows times classes: with 1,000 classes of 2 to 3
    images a tree has up to 5,000 nodes of 1,000 numbers, 40 MB, and 200 trees would take 8 GB.

    Breiman: "Random Forests", Machine Learning 45 (2001). Geurts, Ernst, Wehenkel: "Extremely
    randomized trees", Machine Learning 63 (2006).

    Examples
    --------
    >>> head = TreeEnsemble(random_state=0).fit([[0.0], [0.1], [0.9], [1.0]], list("aabb"))
    >>> head.predict([[0.05], [0.95]]).tolist()
    ['a', 'b']
    """

    def __init__(
        self,
        *,
        splits: str = "best",
        n_estimators: str | int = "auto",
        max_depth: int | None = None,
        min_samples_leaf: int | float = 1,
        min_weight_fraction_leaf: float = 0.0,
        max_features: str | int | float | None = "sqrt",
        class_weight: Any = None,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.splits = splits
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.min_weight_fraction_leaf = min_weight_fraction_leaf
        self.max_features = max_features
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TreeEnsemble:
        """Grow the trees on features (n, d) and labels (n,).

        Raises
        ------
        HeadError
            The data cannot be learned from, or a parameter is out of range.
        """
        self._validate_params()
        X, y, self.classes_, _ = validated_training(self, X, y, dtype=[np.float32, np.float64])
        trees = self.n_estimators
        if trees == "auto":
            # A tree grown to the end has nearly two nodes a row.
            tree_bytes = 2 * 8 * len(X) * len(self.classes_)
            trees = int(np.clip(_BUDGET_BYTES // tree_bytes, _FEWEST, _MOST))
        self.model_ = self._model(trees).fit(X, y, sample_weight)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Return the mean of the trees' probabilities, (n, k)."""
        probabilities: NDArray[Any] = self._fitted().predict_proba(self._validated(X))
        return probabilities

    def _model(self, n_estimators: Any) -> Any:
        cls = RandomForestClassifier if self.splits == "best" else ExtraTreesClassifier
        return cls(
            n_estimators,
            max_depth=self.max_depth,
            min_samples_leaf=self.min_samples_leaf,
            min_weight_fraction_leaf=self.min_weight_fraction_leaf,
            max_features=self.max_features,
            class_weight=self.class_weight,
            n_jobs=self.n_jobs,
            random_state=self.random_state,
        )

    def _validate_params(self) -> None:
        if self.splits not in ("best", "random"):
            raise HeadError(
                f"splits must be 'best' or 'random', received {self.splits!r}: leave it out"
            )
        trees = self.n_estimators
        whole = isinstance(trees, Integral) and not isinstance(trees, bool) and trees >= 1
        if trees != "auto" and not whole:
            raise HeadError(
                f'n_estimators must be "auto" or an integer of at least 1, received {trees!r}: '
                'leave it at "auto"'
            )
        self._model(1)._validate_params()

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.model_

    def _validated(self, X: Any) -> NDArray[Any]:
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        return np.asarray(X)
