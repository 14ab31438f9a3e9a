"""k nearest neighbours that work with fewer images than neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.heads.rows import Fold
from featx.heads.scatter import Scale, fold_scales
from featx.heads.sweep import HeldOut, checked_data, core_estimators
from featx.heads.targets import LikeliestClass
from featx.heads.validation import validated_training

_TILE = 4096
_TESTED = 1024


class NearestNeighbours(LikeliestClass, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
    n_features_in_ : int

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

    def fit(self, X: Any, y: Any) -> NearestNeighbours:
        """Keep the rows."""
        X, y, self.classes_, _ = validated_training(self, X, y, dtype=[np.float64, np.float32])
        self._validate_params()
        self.model_ = self.neighbours_model(len(X)).fit(X, y)
        return self

    def neighbours_model(self, rows: int) -> Any:
        """Give the untrained model for this many images.

        Parameters
        ----------
        rows : int
            Images to train on.

        Returns
        -------
        model : KNeighborsClassifier
        """
        return self._model(min(self.n_neighbors, rows))

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Shares of the vote."""
        shares: NDArray[Any] = self._fitted().predict_proba(self._validated(X))
        return shares

    def _model(self, n_neighbors: int) -> Any:
        return KNeighborsClassifier(
            n_neighbors,
            weights=self.weights,
            metric=self.metric,
            algorithm="brute",
            n_jobs=self.n_jobs,
        )

    def _validate_params(self) -> None:
        self._model(self.n_neighbors)._validate_params()

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.model_

    def _validated(self, X: Any) -> NDArray[Any]:
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(X)


def sweep_knn(
    X: NDArray[np.floating[Any]],
    y: NDArray[np.intp],
    folds: Sequence[Fold],
    candidates: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    sample_weight: NDArray[np.floating[Any]] | None = None,
) -> Iterator[HeldOut]:
    """Measure settings of the head ``knn`` (see `Sweep`)."""
    X, y = checked_data(X, y, folds, sample_weight, weights_refused_by="knn")
    settings = core_estimators("knn", candidates, seed=seed)
    by_metric: dict[str, dict[int, Any]] = {}
    for number, setting in enumerate(settings):
        by_metric.setdefault(setting.metric, {})[number] = setting
    classes = int(y.max()) + 1
    scales = fold_scales(X, folds)
    for fold, ((train, test), scale) in enumerate(zip(folds, scales, strict=True)):
        for metric, group in by_metric.items():
            if metric not in ("cosine", "euclidean"):
                for number, setting in group.items():
                    fitted = setting.fit(scale.apply(X[train]), y[train])
                    yield HeldOut(number, fold, fitted.predict_proba(scale.apply(X[test])))
                continue
            most = min(max(s.n_neighbors for s in group.values()), len(train))
            distances, places = nearest_rows(X, train, test, most, metric, scale=scale)
            codes = y[train][places]
            for number, shares in _votes(distances, codes, group, classes):
                yield HeldOut(number, fold, shares)


def nearest_rows(
    X: NDArray[np.floating[Any]],
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    k: int,
    metric: str,
    *,
    scale: Scale | None = None,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.intp]]:
    """Find the k nearest training rows of each testing row.

    Notes
    -----
    Tiles of 4,096 by 1,024 rows, so that memory stays at some 60 MiB beyond the answer. Euclidean
    distances are differences of squares, which float32 would lose for near duplicates: their
    products are made in float64, as scikit-learn's are. Cosines of unit rows lose nothing.
    """
    squared = metric == "euclidean"
    best = np.full((len(test), k), np.inf, np.float64 if squared else X.dtype)
    found = np.zeros((len(test), k), dtype=np.intp)
    for start, stop in _cut(len(train), _TILE):
        tile = _prepared(X[train[start:stop]], scale, squared)
        lengths = np.einsum("ij,ij->i", tile, tile) if squared else None
        for first, last in _cut(len(test), _TESTED):
            block = _prepared(X[test[first:last]], scale, squared)
            product = block @ tile.T
            if lengths is None:
                distance = np.clip(np.subtract(1, product, out=product), 0, 2, out=product)
            else:
                product *= -2
                product += lengths
                product += np.einsum("ij,ij->i", block, block)[:, None]
                distance = np.maximum(product, 0, out=product)
            _merge(best[first:last], found[first:last], distance, start)
    order = np.lexsort((found, best), axis=1)
    best, found = (np.take_along_axis(a, order, axis=1) for a in (best, found))
    return (np.sqrt(best) if squared else best), found


def _cut(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _prepared(rows: NDArray[Any], scale: Scale | None, squared: bool) -> NDArray[np.floating[Any]]:
    scaled = rows if scale is None else scale.apply(rows)
    if squared:
        wide: NDArray[Any] = scaled.astype(np.float64)
        return wide
    norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    norms[norms == 0] = 1
    unit: NDArray[Any] = scaled / norms[:, None]
    return unit


def _merge(
    best: NDArray[Any], found: NDArray[np.intp], distance: NDArray[Any], offset: int
) -> None:
    """Put into ``best`` and ``found`` what a tile has that is nearer."""
    k = best.shape[1]
    if distance.shape[1] > k:
        near = np.argpartition(distance, k - 1, axis=1)[:, :k]
        distance = np.take_along_axis(distance, near, axis=1)
    else:
        near = np.broadcast_to(np.arange(distance.shape[1]), distance.shape)
    if offset == 0 and distance.shape[1] == k:
        best[:], found[:] = distance, near
        return
    both = np.hstack([best, distance])
    places = np.hstack([found, near + offset])
    kept = np.argpartition(both, k - 1, axis=1)[:, :k]
    best[:] = np.take_along_axis(both, kept, axis=1)
    found[:] = np.take_along_axis(places, kept, axis=1)


def _votes(
    distances: NDArray[np.floating[Any]],
    codes: NDArray[np.intp],
    group: Mapping[int, Any],
    classes: int,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Count votes from few neighbours to many, each neighbour once a way of voting."""
    rows, most = codes.shape
    cells = np.arange(rows)[:, None] * classes + codes
    for way in ("uniform", "distance"):
        wanted = {n: s for n, s in group.items() if s.weights == way}
        if not wanted:
            continue
        weights = np.ones((rows, most)) if way == "uniform" else _inverse(distances)
        tally, counted = np.zeros(rows * classes), 0
        for number in sorted(wanted, key=lambda n: int(wanted[n].n_neighbors)):
            until = min(int(wanted[number].n_neighbors), most)
            tally += np.bincount(
                cells[:, counted:until].ravel(),
                weights[:, counted:until].ravel(),
                minlength=rows * classes,
            )
            counted = until
            shares = tally.reshape(rows, classes)
            yield number, shares / shares.sum(axis=1, keepdims=True)


def _inverse(distances: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    # A row at no distance is the same image: it outvotes whatever is not, as in scikit-learn.
    same = distances == 0
    with np.errstate(divide="ignore"):
        inverse = 1 / distances.astype(np.float64)
    inverse[same.any(axis=1)] = 0
    inverse[same] = 1
    found: NDArray[np.float64] = inverse
    return found
