"""Tell apart what an estimator is given: images, or features that were extracted before."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from featx.images.dataset import ImageDataset

__all__ = ["as_image_dataset"]


def as_image_dataset(X: Any) -> ImageDataset | None:
    """Return the images that `X` stands for, or None when it holds features.

    Paths and arrays of pixels are images. A two-dimensional array of numbers holds features, one
    row an image, so that estimators train on cached features as they do on files; whether it is
    well formed is for scikit-learn's validation to say.

    Parameters
    ----------
    X : ImageDataset, list of paths, or array
        Paths (n,), pixels (n, h, w) or (n, h, w, c), or features (n, d).
    """
    if isinstance(X, ImageDataset):
        return X
    if isinstance(X, str | os.PathLike):
        return ImageDataset.from_any(X)
    if hasattr(X, "toarray") or (hasattr(X, "iloc") and getattr(X, "ndim", 1) == 2):
        return None
    if isinstance(X, np.ndarray):
        if X.dtype.kind in "US":
            return ImageDataset.from_paths([str(path) for path in X.ravel()])
        if X.dtype.kind == "O" and X.ndim == 1 and X.size and _is_path(X[0]):
            return ImageDataset.from_paths(list(X))
        return ImageDataset.from_arrays(X) if X.ndim in (3, 4) else None
    if hasattr(X, "iloc"):
        return ImageDataset.from_paths(list(X)) if len(X) and _is_path(X.iloc[0]) else None
    if isinstance(X, list | tuple) and X:
        if _is_path(X[0]):
            return ImageDataset.from_paths(list(X))
        if hasattr(X[0], "getbands"):
            return ImageDataset.from_arrays([np.asarray(image.convert("RGB")) for image in X])
        if np.ndim(X[0]) in (2, 3):
            return ImageDataset.from_arrays([np.asarray(image) for image in X])
    return None


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)
