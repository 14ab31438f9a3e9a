"""Features in two dimensions: UMAP, or principal components where it is not installed.

Notes
-----
UMAP: McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension
Reduction", 2018, on the leading principal components. Of more rows than `MOST_FITTED` a seeded
sample is laid out, and every other row lies among the sampled rows that are most like it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.spec import BlockName

MOST_FITTED = 20_000
"""Rows that UMAP lays out; the others are placed among them."""

_COMPONENTS = 50
_FEWEST_OF_UMAP = 50
_NEIGHBOURS = 15
_PLACED_BY = 5
_BATCH = 4096
_BATCH_BYTES = 64 << 20
_WIDEST = 2048


def map_features(
    features: Features, block: BlockName, *, seed: int = 0
) -> tuple[NDArray[np.float32], str]:
    """Return a point (n, 2) for each row of a block, and the name of the method.

    The same features and seed give the same points with the same libraries.
    """
    components = _principal_components(features, block)
    if len(components) < _FEWEST_OF_UMAP:
        return _two_columns(components), "PCA"
    umap = _umap()
    if umap is None:
        return _two_columns(components), "PCA"
    rows = _sample(len(components), seed)
    layout = umap(
        n_neighbors=min(_NEIGHBOURS, len(rows) - 1), init="pca", random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of points that coincide, and of its own seed
        fitted = layout.fit_transform(components[rows]).astype(np.float32)
    if len(rows) == len(components):
        return fitted, "UMAP"
    return _placed(components, rows, fitted, seed), "UMAP"


def _principal_components(features: Features, block: BlockName) -> NDArray[np.float32]:
    """Return the leading principal components of all rows, shape (n, at most 50)."""
    n = len(features)
    width = min(features.width(**block), _WIDEST)
    mean, gram = np.zeros(width), np.zeros((width, width))
    for part, _ in _batches(features, block):
        mean += part.sum(axis=0, dtype=np.float64)
        gram += part.T @ part
    mean /= max(n, 1)
    values, vectors = np.linalg.eigh(gram / max(n, 1) - np.outer(mean, mean))
    leading = np.argsort(-values)[: min(_COMPONENTS, width)]
    axes = vectors[:, leading]
    # The sign of a component is chance: the largest part of each is positive.
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(leading))])
    components = np.zeros((n, len(leading)), np.float32)
    for part, rows in _batches(features, block):
        components[rows] = (part - mean.astype(np.float32)) @ axes.astype(np.float32)
    return components


def _batches(
    features: Features, block: BlockName
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
    """Yield rows of a block in batches; wide ones projected at random (Achlioptas, 2003)."""
    width = features.width(**block)
    size = min(_BATCH, max(16, _BATCH_BYTES // (4 * width)))
    project = None
    if width > _WIDEST:
        from sklearn.random_projection import SparseRandomProjection

        project = SparseRandomProjection(_WIDEST, random_state=0).fit(np.zeros((1, width)))
    for X, rows in features.batches(**block, batch_size=size):
        part = X if project is None else project.transform(X)
        yield part.astype(np.float32, copy=False), rows


def _umap() -> Any:
    """Return the class that lays out rows, None where it is not installed."""
    # Its variant with a network imports TensorFlow, which takes longer than all else here.
    network = "umap.parametric_umap"
    absent = network not in sys.modules
    if absent:
        sys.modules[network] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError:
        return None
    finally:
        if absent:
            del sys.modules[network]
    return UMAP


def _two_columns(components: NDArray[np.float32]) -> NDArray[np.float32]:
    points = np.zeros((len(components), 2), np.float32)
    points[:, : components.shape[1]] = components[:, :2]
    return points


def _sample(n: int, seed: int) -> NDArray[np.intp]:
    if n <= MOST_FITTED:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST_FITTED, replace=False))


def _placed(
    components: NDArray[np.float32], rows: NDArray[np.intp], fitted: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Return points for all rows: each new one is the weighted mean of the nearest fitted ones."""
    points = np.zeros((len(components), 2), np.float32)
    known = components[rows]
    squares = (known * known).sum(axis=1)
    for start in range(0, len(components), _BATCH):
        part = components[start : start + _BATCH]
        distances = squares - 2 * (part @ known.T) + (part * part).sum(axis=1)[:, None]
        nearest = np.argpartition(distances, _PLACED_BY, axis=1)[:, :_PLACED_BY]
        chosen = np.maximum(np.take_along_axis(distances, nearest, axis=1), 0)
        order = chosen.argmin(axis=1)
        weights = np.exp(-chosen / np.maximum(chosen.mean(axis=1, keepdims=True), 1e-12))
        # Around the nearest: a mean over two islands would lie between them, where nothing is.
        anchor = fitted[nearest[np.arange(len(part)), order]]
        close = np.linalg.norm(fitted[nearest] - anchor[:, None], axis=2) < 1
        weights = weights * close
        means = (weights[:, :, None] * fitted[nearest]).sum(axis=1)
        points[start : start + len(part)] = means / weights.sum(axis=1, keepdims=True)
    # What lies at one point is drawn as one: a little apart, the number of images is seen.
    points += np.random.default_rng(seed).normal(0, 0.05, points.shape).astype(np.float32)
    points[rows] = fitted
    return points
