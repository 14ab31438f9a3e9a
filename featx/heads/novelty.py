"""Images unlike those of training: the distance to the nearest class mean, and its threshold."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ArtefactError, reason
from featx.files.safe_hdf5 import read_hdf5_array

_COMPONENTS = 128
_MOST_ROWS = 4000
_MOST_COLUMNS = 2048
_MOST_EXACT = 1500
_SHRINKAGE = 0.1
_FOLDS = 3
# Of few rows nearly all are needed for a fold to be like the whole.
_FEW, _FOLDS_OF_FEW = 400, 10
_FEWEST = 20
_CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """Says how unlike the training images an image is.

    Parameters
    ----------
    columns : ndarray of shape (w,), int64
        Features that are looked at.
    mean : ndarray of shape (w,), float32
        Of the training rows, scaled to length 1.
    components : ndarray of shape (w, r), float32
        Principal components.
    whitening : ndarray of shape (r, r), float32
        Makes the covariance within classes the identity.
    centres : ndarray of shape (k, r), float32
        Class means after both.
    residual : float
        Variance of each direction outside of the components.
    threshold : float
        Squared distance that `false_alarm_rate` of images like those of training exceed.
    false_alarm_rate : float
        See `threshold`.
    interval : tuple of float
        Within which the rate is with a probability of 95 %, given the number of images.
    images : int
        Held-out images that the threshold comes from.
    """

    columns: NDArray[np.int64]
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    whitening: NDArray[np.float32]
    centres: NDArray[np.float32]
    residual: float
    threshold: float
    false_alarm_rate: float
    interval: tuple[float, float]
    images: int

    def distance(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return distances in units of the threshold, shape (n,): above 1 is unknown.

        Parameters
        ----------
        X : ndarray of shape (n, d)
            Features.
        """
        found = [self._squared(X[start : start + _CHUNK]) for start in range(0, len(X), _CHUNK)]
        squared = np.concatenate(found) if found else np.empty(0)
        distances: NDArray[np.float64] = np.sqrt(squared / self.threshold)
        return distances

    def _squared(self, X: NDArray[Any]) -> NDArray[np.float64]:
        centred = _unit(X[:, self.columns]) - self.mean
        within = (centred @ self.components).astype(np.float64)
        points, centres = within @ self.whitening, self.centres.astype(np.float64)
        nearest = (_squares(centres) - 2 * points @ centres.T).min(axis=1)
        outside = np.maximum(_squares(centred.astype(np.float64)) - _squares(within), 0)
        squared: NDArray[np.float64] = _squares(points) + nearest + outside / self.residual
        return np.maximum(squared, 0)

    def describe(self) -> dict[str, Any]:
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
    X: NDArray[Any],
    codes: NDArray[np.intp],
    groups: NDArray[Any] | None = None,
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


def _with_threshold(
    novelty: Novelty, distances: NDArray[np.float64], rate: float
) -> Novelty | None:
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
    codes: NDArray[np.intp], groups: NDArray[Any], generator: np.random.Generator
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
        1.0,
        0.0,
        (0.0, 1.0),
        0,
    )


def _components(centred: NDArray[np.float32], count: int) -> NDArray[np.float64] | None:
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
    kept = values > 1e-6 * max(float(values[0]), 1e-12)
    if not kept.any() or values[0] <= 1e-12:
        return None
    if n < width:
        axes: NDArray[np.float64] = centred.T @ vectors[:, kept] / np.sqrt(values[kept])
        return axes
    return np.asarray(vectors[:, kept])


def _squares(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return found


def _unit(X: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.asarray(X, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    lengths[lengths == 0] = 1
    unit: NDArray[np.float32] = rows / lengths[:, None]
    return unit


def dump_novelty(novelty: Novelty) -> tuple[dict[str, Any], bytes]:
    """Turn it into JSON types and the bytes of an HDF5 file."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for name in ("columns", "mean", "components", "whitening", "centres"):
            dtype = "<i8" if name == "columns" else "<f4"
            array = np.ascontiguousarray(getattr(novelty, name), dtype=dtype)
            h5.create_dataset(name, data=array)
    k, r = novelty.centres.shape
    shape = [len(novelty.columns), r, k]
    return {**novelty.describe(), "residual": novelty.residual, "shape": shape}, file.getvalue()


def load_novelty(said: dict[str, Any], arrays: bytes, width: int) -> Novelty:
    """Make it from what `dump_novelty` gave."""
    import h5py

    try:
        w, r, k = (int(side) for side in said["shape"])
        if min(w, r, k) < 1 or (3 * w + (w + r + k) * r) * 4 > len(arrays):
            raise ValueError(f"{w}, {r} and {k} are larger than the file")  # noqa: TRY301
        with h5py.File(io.BytesIO(arrays), "r") as h5:
            columns = read_hdf5_array(h5, "columns", (w,), np.int64)
            mean, components, whitening, centres = (
                read_hdf5_array(h5, name, shape, np.float32)
                for name, shape in (
                    ("mean", (w,)),
                    ("components", (w, r)),
                    ("whitening", (r, r)),
                    ("centres", (k, r)),
                )
            )
        threshold, rate = float(said["threshold"]), float(said["false_alarm_rate"])
        residual = float(said["residual"])
        low, high = (float(side) for side in said["false_alarm_rate_95"])
        if columns.min() < 0 or columns.max() >= width or not min(threshold, residual) > 0:
            raise ValueError("it is of other features, or has no threshold")  # noqa: TRY301
        images = int(said["images"])
        return Novelty(
            columns,
            mean,
            components,
            whitening,
            centres,
            residual,
            threshold,
            rate,
            (low, high),
            images,
        )
    except Exception as error:
        raise ArtefactError(
            f"what the model knows of unknown images is damaged ({reason(error)}): save the "
            "model again"
        ) from error
