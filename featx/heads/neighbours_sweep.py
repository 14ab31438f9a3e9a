"""k-NN for every number of neighbours and every vote from one pass of distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.candidates import checked_data, core_estimators
from featx.heads.scatter import Scale, fold_scales
from featx.heads.sweep import Fold, HeldOut

_TILE = 4096
_TESTED = 1024


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
