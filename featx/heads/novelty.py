"""Images unlike those of training: the distance to the nearest class mean, and its threshold."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ArtefactError, reason
from featx.files.safe_hdf5 import read_hdf5_array
from featx.heads.rows import Doubles, Floats
from featx.heads.steps import in_parts, unit_rows

_COMPONENTS = 128
_MOST_ROWS = 4000
_MOST_COLUMNS = 2048
_MOST_EXACT = 1500
_SHRINKAGE = 0.1
_FOLDS = 3
# Of few rows nearly all are needed for a fold to be like the whole.
_FEW, _FOLDS_OF_FEW = 400, 10
_FEWEST = 20


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """Says how unlike the training images an image is."""

    columns: NDArray[np.int64]  # (w,), features that are looked at
    mean: NDArray[np.float32]  # (w,), of the training rows, scaled to length 1
    components: NDArray[np.float32]  # (w, r), principal components
    whitening: NDArray[np.float32]  # (r, r), makes the covariance within classes the identity
    centres: NDArray[np.float32]  # (k, r), class means after both
    residual: float  # variance of each direction outside of the components
    # Squared distance that a share of images like those of training exceed, between two bounds
    # with a probability of 95 %, given the number of held-out images that it comes from.
    threshold: float = 1.0
    false_alarm_rate: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    images: int = 0

    def distance(self, X: NDArray[Any]) -> Doubles:
        """Return distances of features (n, d), in units of the threshold: above 1 is unknown."""
        return np.asarray(np.sqrt(in_parts(self._squared, X) / self.threshold))

    def _squared(self, X: Floats) -> Doubles:
        centred = _unit(X[:, self.columns]) - self.mean
        within = (centred @ self.components).astype(np.float64)
        points, centres = within @ self.whitening, self.centres.astype(np.float64)
        nearest = (_squares(centres) - 2 * points @ centres.T).min(axis=1)
        outside = np.maximum(_squares(centred.astype(np.float64)) - _squares(within), 0)
        squared: Doubles = _squares(points) + nearest + outside / self.residual
        return np.maximum(squared, 0)

    def describe(self) -> dict[str, object]:
        """Return what a user should know of it, as JSON types."""
        return {
            "score": "Mahalanobis distance to the nearest class mean, over its threshold",
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "false_alarm_rate_95": list(self.interval),
            "images": self.images,
            "protocol": "cross-validated, equal images on one side",
        }


def fit_novelty(
    X: Floats,
    codes: NDArray[np.intp],
    groups: NDArray[np.generic] | None = None,
    *,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
) -> Novelty | None:
    """Learn what images of training look like, and from held-out ones where that ends.

    Notes
    -----
    Lee et al.: "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018, on features of length 1. The covariance is that within
    classes along the first 128 principal components, shrunk by 0.1 towards a multiple of the
    identity, and one variance for all other directions, as in probabilistic PCA (Tipping, Bishop,
    1999): without the latter, photographs of 32 pixels were nearer to those of ants and bees than
    held-out ants and bees were (area under the ROC curve 0.26; with it, 0.97).

    The threshold is the conformal quantile of the distances of held-out rows (Vovk, Gammerman,
    Shafer: "Algorithmic Learning in a Random World", 2005), each measured by what was fitted on
    the other folds, along as many components as are used in the end. There are 3 folds, of up to
    400 rows 10: what is fitted on fewer rows measures other distances.
    """
    generator = np.random.default_rng(seed)
    rows = np.arange(len(X))
    if len(X) > _MOST_ROWS:
        rows = np.sort(generator.choice(len(X), _MOST_ROWS, replace=False))
    columns = np.arange(X.shape[1])
    if len(columns) > _MOST_COLUMNS:
        columns = np.sort(generator.choice(len(columns), _MOST_COLUMNS, replace=False))
    if len(rows) < _FEWEST:
        return None
    unit = _unit(X[rows][:, columns])
    chosen = np.asarray(codes)[rows]
    fold = _folds(chosen, rows if groups is None else np.asarray(groups)[rows], generator)
    if fold.max() < _FOLDS - 1:
        return None
    # As many in the folds as in the end: distances along more of them are larger.
    fewest = len(rows) - int(np.bincount(fold).max())
    count = max(1, min(_COMPONENTS, fewest // 4))
    held_out = []
    for number in range(int(fold.max()) + 1):
        training, testing = fold != number, fold == number
        part = _fit(unit[training], chosen[training], columns, count)
        if part is None:
            return None
        held_out.append(replace(part, columns=np.arange(len(columns)))._squared(unit[testing]))
    whole = _fit(unit, chosen, columns, count)
    if whole is None:
        return None
    return _with_threshold(whole, np.sort(np.concatenate(held_out)), false_alarm_rate)


def _with_threshold(novelty: Novelty, distances: Doubles, rate: float) -> Novelty | None:
    from scipy.stats import beta

    n = len(distances)
    rank = min(n, math.ceil((n + 1) * (1 - rate)))
    threshold = float(distances[rank - 1])
    if not threshold > 0:
        return None
    # The share beyond the rank-th of n is distributed like this, whatever the distances are.
    low, high = beta.ppf([0.025, 0.975], n + 1 - rank, rank)
    return replace(
        novelty,
        threshold=threshold,
        false_alarm_rate=(n + 1 - rank) / (n + 1),
        interval=(float(low), float(high)),
        images=n,
    )


def _folds(
    codes: NDArray[np.intp], groups: NDArray[np.generic], generator: np.random.Generator
) -> NDArray[np.intp]:
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    # Sorted by class and drawn within, so that each fold has its share of each class.
    order = np.lexsort((generator.random(len(first)), codes[first]))
    of_group = np.empty(len(first), np.intp)
    folds = _FOLDS if len(codes) > _FEW else min(_FOLDS_OF_FEW, len(first))
    of_group[order] = np.arange(len(first)) % folds
    return of_group[member]


def _fit(
    unit: NDArray[np.float32], codes: NDArray[np.intp], columns: NDArray[np.intp], count: int
) -> Novelty | None:
    mean = unit.mean(axis=0)
    centred = unit - mean
    components = _components(centred, count)
    if components is None:
        return None
    points = (centred @ components).astype(np.float64)
    _, member, counts = np.unique(codes, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), points.shape[1]))
    np.add.at(means, member, points)
    means /= counts[:, None]
    within = points - means[member]
    covariance = within.T @ within / max(1, len(unit) - len(counts))
    size = len(covariance)
    level = np.trace(covariance) / size
    if not level > 0:
        # One image a class: nothing is known but how the images differ.
        covariance = points.T @ points / len(unit)
        level = np.trace(covariance) / size
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(size)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    outside = float(np.square(centred, dtype=np.float64).sum() - np.square(points).sum())
    spare = max(1, unit.shape[1] - size)
    return Novelty(
        columns.astype(np.int64),
        mean.astype(np.float32),
        components.astype(np.float32),
        whitening.astype(np.float32),
        (means @ whitening).astype(np.float32),
        max(outside / spare / len(unit), _SHRINKAGE * float(level)),
    )


def _components(centred: NDArray[np.float32], count: int) -> Doubles | None:
    """Return principal axes of shape (w, r), by the smaller of the two products."""
    n, width = centred.shape
    if min(n, width) > _MOST_EXACT:
        from sklearn.utils.extmath import randomized_svd

        return np.asarray(randomized_svd(centred, count, n_iter=4, random_state=0)[2].T, np.float64)
    from scipy.linalg import eigh

    product = centred @ centred.T if n < width else centred.T @ centred
    size = len(product)
    values, vectors = eigh(
        product.astype(np.float64), subset_by_index=[max(0, size - count), size - 1]
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    real = values > 1e-6 * max(float(values[0]), 1e-12)
    if not real.any() or values[0] <= 1e-12:
        return None
    if n < width:
        return np.asarray(centred.T @ vectors[:, real] / np.sqrt(values[real]))
    return np.asarray(vectors[:, real])


def _squares(rows: Doubles) -> Doubles:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _unit(X: Floats) -> NDArray[np.float32]:
    return np.asarray(unit_rows(np.asarray(X, np.float32)))


_ARRAYS = {
    "columns": ("w",),
    "mean": ("w",),
    "components": ("w", "r"),
    "whitening": ("r", "r"),
    "centres": ("k", "r"),
}


def dump_novelty(novelty: Novelty) -> tuple[dict[str, object], bytes]:
    """Turn it into JSON types and the bytes of an HDF5 file."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for name in _ARRAYS:
            dtype = "<i8" if name == "columns" else "<f4"
            array = np.ascontiguousarray(getattr(novelty, name), dtype=dtype)
            h5.create_dataset(name, data=array)
    k, r = novelty.centres.shape
    shape = [len(novelty.columns), r, k]
    return {**novelty.describe(), "residual": novelty.residual, "shape": shape}, file.getvalue()


def load_novelty(description: Mapping[str, Any], arrays: bytes, width: int) -> Novelty:
    """Make it from what `dump_novelty` gave."""
    import h5py

    try:
        w, r, k = (int(side) for side in description["shape"])
        if min(w, r, k) < 1 or (3 * w + (w + r + k) * r) * 4 > len(arrays):
            raise ValueError(f"{w}, {r} and {k} are larger than the file")  # noqa: TRY301
        sides = {"w": w, "r": r, "k": k}
        with h5py.File(io.BytesIO(arrays), "r") as h5:
            read: dict[str, Any] = {
                name: read_hdf5_array(
                    h5,
                    name,
                    tuple(sides[side] for side in shape),
                    np.int64 if name == "columns" else np.float32,
                )
                for name, shape in _ARRAYS.items()
            }
        names = ("residual", "threshold", "false_alarm_rate")
        numbers: dict[str, Any] = {name: float(description[name]) for name in names}
        low, high = (float(side) for side in description["false_alarm_rate_95"])
        columns = read["columns"]
        known = columns.min() >= 0 and columns.max() < width
        if not known or not min(numbers["threshold"], numbers["residual"]) > 0:
            raise ValueError("it is of other features, or has no threshold")  # noqa: TRY301
        images = int(description["images"])
        return Novelty(**read, **numbers, interval=(low, high), images=images)
    except Exception as error:
        raise ArtefactError(
            f"what the model knows of unknown images is damaged ({reason(error)}): save the "
            "model again"
        ) from error
