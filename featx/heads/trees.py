"""Ensembles of trees that many classes do not make too large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from featx.heads.estimators import Allowed, OfModel, WeightedClassifier, from_1
from featx.heads.rows import Rows
from featx.heads.targets import ClassWeight, Targets

_MOST = 200
_FEWEST = 10
_BUDGET_BYTES = 512 * 2**20


class TreeEnsemble(WeightedClassifier, OfModel):
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

    _dtypes = (np.float32, np.float64)
    _allowed = (
        Allowed("splits", "'best' or 'random'", "leave it out", ("best", "random")),
        replace(
            from_1("n_estimators", 'leave it at "auto"'),
            text='"auto" or an integer of at least 1',
            words=("auto",),
        ),
    )

    def __init__(
        self,
        *,
        splits: str = "best",
        n_estimators: str | int = "auto",
        max_depth: int | None = None,
        min_samples_leaf: int | float = 1,
        min_weight_fraction_leaf: float = 0.0,
        max_features: str | int | float | None = "sqrt",
        class_weight: ClassWeight = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
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

    def fit_rows(self, rows: Rows, targets: Targets) -> TreeEnsemble:
        """Grow the trees on rows in memory."""
        self.classes_, self.n_features_in_ = targets.names, rows.width
        trees = self.n_estimators
        if trees == "auto":
            # A tree grown to the end has nearly two nodes a row.
            tree_bytes = 2 * 8 * len(rows) * targets.columns
            trees = int(np.clip(_BUDGET_BYTES // tree_bytes, _FEWEST, _MOST))
        model = self._model(trees)
        self.model_ = model.fit(rows.gather(), targets.shown(), targets.weights)
        return self

    def _model(self, n_estimators: object) -> RandomForestClassifier | ExtraTreesClassifier:
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
        super()._validate_params()
        self._model(1)._validate_params()
