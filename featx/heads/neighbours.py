"""k nearest neighbours that work with fewer images than neighbours."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from sklearn import config_context
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors

from featx.heads.estimators import OfModel, OwnRegressor
from featx.heads.rows import Doubles, Floats, Numbers, Rows
from featx.heads.steps import Neighbours, vote_weights
from featx.heads.sweep import HeldOut, SweepData, swept
from featx.heads.targets import Targets

# For distances at a time.
_MEBIBYTES = 64


class NearestNeighbours(OfModel):
    """scikit-learn's k-NN by brute force, with at most as many neighbours as there are images.

    Parameters
    ----------
    n_neighbors : int, default=10
        Neighbours that vote. The rule for few images: ``min(n_neighbors, images)``.
    weights : {"distance", "uniform"}, default="distance"
        How they vote. With ``"distance"`` few images do not end in ties, which the first class
        would win.
    metric : str, default="cosine"
        Any metric of scikit-learn's ``KNeighborsClassifier``.
    n_jobs : int, default=None
        As in scikit-learn.

    Attributes
    ----------
    model_ : KNeighborsClassifier
        Fitted, with the number of neighbours that is in use.
    classes_ : ndarray of shape (k,)

    Notes
    -----
    Brute force is one matrix product and beats every tree at the hundreds of dimensions that
    features have; it also keeps trees, which skops distrusts, out of a saved model. The defaults
    were measured on MobileNetV2 features of CIFAR-10 (5,000 images, 1,280 wide, standardised):
    accuracy 0.641 with 10 neighbours by cosine, 0.616 with 5, 0.556 with 10 by Euclidean distance.

    Examples
    --------
    >>> head = NearestNeighbours().fit([[0.0, 1.0], [1.0, 0.0]], ["ants", "bees"])
    >>> head.predict([[0.1, 0.9]]).tolist()
    ['ants']
    """

    def __init__(
        self,
        *,
        n_neighbors: int = 10,
        weights: str = "distance",
        metric: str = "cosine",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric
        self.n_jobs = n_jobs

    def fit_rows(self, rows: Rows, targets: Targets) -> NearestNeighbours:
        """Keep rows in memory, and their classes."""
        self._validate_params()
        self.classes_, self.n_features_in_ = targets.names, rows.width
        self.model_ = self.neighbours_model(len(rows)).fit(rows.gather(), targets.shown())
        return self

    def fit_labels(
        self, rows: Rows, targets: Targets
    ) -> tuple[list[KNeighborsClassifier], Doubles]:
        """Return one fitted model for all labels."""
        self._validate_params()
        model = self.neighbours_model(len(rows))
        return [model.fit(rows.gather(), targets.values.astype(np.intp))], np.empty(0)

    def neighbours_model(self, rows: int) -> KNeighborsClassifier:
        """Return the untrained model for this many images."""
        return self._model(min(self.n_neighbors, rows))

    def _model(self, n_neighbors: int) -> KNeighborsClassifier:
        return KNeighborsClassifier(
            n_neighbors,
            weights=self.weights,
            metric=self.metric,
            algorithm="brute",
            n_jobs=self.n_jobs,
        )

    def _validate_params(self) -> None:
        self._model(self.n_neighbors)._validate_params()


class NearestValues(OwnRegressor):
    """Mean of the numbers of the nearest neighbours, of at most as many as there are images.

    Parameters
    ----------
    n_neighbors : int, default=10
        Neighbours whose mean it is: ``min(n_neighbors, images)``.
    weights : {"distance", "uniform"}, default="distance"
        How much each counts.
    metric : str, default="cosine"
        Any metric of scikit-learn's ``KNeighborsRegressor``.

    Attributes
    ----------
    step_ : Neighbours
        The rows with their numbers.

    Examples
    --------
    >>> head = NearestValues(n_neighbors=1).fit([[0.0, 1.0], [1.0, 0.0]], [2.5, 7.0])
    >>> head.predict([[0.1, 0.9]]).tolist()
    [2.5]
    """

    def __init__(
        self, *, n_neighbors: int = 10, weights: str = "distance", metric: str = "cosine"
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric

    def fit_rows(self, rows: Rows, targets: Targets) -> NearestValues:
        """Keep rows in memory, and their numbers."""
        self.n_features_in_ = rows.width
        self.step_ = neighbours_of_values(rows, targets, self)
        return self

    def _values(self, rows: Floats) -> Floats:
        return self.step_.apply(rows)

    def _validate_params(self) -> None:
        KNeighborsRegressor(
            self.n_neighbors, weights=self.weights, metric=self.metric, algorithm="brute"
        )._validate_params()


def neighbours_of_values(
    rows: Rows, targets: Targets, head: NearestNeighbours | NearestValues
) -> Neighbours:
    """Return the step that averages the values of the nearest of some rows."""
    head._validate_params()
    return Neighbours(
        rows.gather(),
        targets.values,
        columns=targets.columns,
        count=min(head.n_neighbors, len(rows)),
        nearer_count_more=head.weights == "distance",
        metric=head.metric,
    )


@swept("knn")
def sweep_knn(data: SweepData) -> Iterator[HeldOut]:
    """Measure settings of the head ``knn`` (see `Sweep`): one search a metric and fold."""
    classes, y = data.targets.columns, data.targets.values.astype(np.intp)
    for fold, train, group, distances, nearest in _searched(data):
        for number, shares in _votes(distances, y[train][nearest], group, classes):
            yield HeldOut(number, fold, shares)


@swept("knn", learns=("values",))
def sweep_nearest_values(data: SweepData) -> Iterator[HeldOut]:
    """Measure settings of the head ``knn`` for numbers: one search a metric and fold."""
    for fold, train, group, distances, nearest in _searched(data):
        values, most = data.targets.values[train][nearest], distances.shape[1]
        for way in ("uniform", "distance"):
            settings = {n: s for n, s in group.items() if s.weights == way}
            weights = np.ones_like(distances) if way == "uniform" else vote_weights(distances)
            sums = np.cumsum(weights[:, :, None] * values, axis=1)
            counts = np.cumsum(weights, axis=1)
            for number, setting in settings.items():
                last = min(int(setting.n_neighbors), most) - 1
                yield HeldOut(number, fold, sums[:, last] / counts[:, last, None])


_Searched: TypeAlias = tuple[int, Numbers, Mapping[int, Any], Floats, Numbers]
"""Fold, its training rows, settings by number, distances and numbers of the nearest (m, most)."""


def _searched(data: SweepData) -> Iterator[_Searched]:
    """Search the nearest training rows of the testing rows, once a metric and fold."""
    by_metric: dict[Hashable, dict[int, Any]] = {}
    for number, setting in enumerate(data.settings):
        by_metric.setdefault(setting.metric, {})[number] = setting
    for fold, train, trained, tested in data.scaled():
        for metric, group in by_metric.items():
            most = min(max(setting.n_neighbors for setting in group.values()), len(train))
            search = NearestNeighbors(n_neighbors=most, metric=metric, algorithm="brute")
            # In double precision, whose products take 0.7 of the time of scikit-learn's own loop.
            dtype = np.float64 if metric == "euclidean" else trained.dtype
            with config_context(enable_cython_pairwise_dist=False, working_memory=_MEBIBYTES):
                search.fit(trained.astype(dtype, copy=False))
                distances, nearest = search.kneighbors(tested.astype(dtype, copy=False))
            yield fold, train, group, distances, nearest


def _votes(
    distances: Floats, codes: Numbers, group: Mapping[int, NearestNeighbours], classes: int
) -> Iterator[tuple[int, Doubles]]:
    """Count votes from few neighbours to many, each neighbour once a way of voting."""
    rows, most = codes.shape
    cells = np.arange(rows)[:, None] * classes + codes
    for way in ("uniform", "distance"):
        settings = {n: s for n, s in group.items() if s.weights == way}
        if not settings:
            continue
        weights = np.ones((rows, most)) if way == "uniform" else vote_weights(distances)
        tally, counted = np.zeros(rows * classes), 0
        for number in sorted(settings, key=lambda n: int(settings[n].n_neighbors)):
            until = min(int(settings[number].n_neighbors), most)
            tally += np.bincount(
                cells[:, counted:until].ravel(),
                weights[:, counted:until].ravel(),
                minlength=rows * classes,
            )
            counted = until
            shares = tally.reshape(rows, classes)
            yield number, shares / shares.sum(axis=1, keepdims=True)
