"""Tell apart what an estimator is given: images, or features that were extracted before."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from featx.images.dataset import ImageDataset
from featx.images.sources import listed_paths, listed_pictures


def as_image_dataset(X: Any) -> ImageDataset | None:
    """Return the images that `X` stands for, or None when it holds features."""
    if isinstance(X, ImageDataset):
        return X
    if isinstance(X, str | bytes | os.PathLike) or listed_pictures(X) is not None:
        return ImageDataset.from_any(X)
    paths = listed_paths(X)
    if paths is not None:
        return ImageDataset.from_paths(paths)
    if isinstance(X, np.ndarray):
        return ImageDataset.from_any(X) if X.ndim in (3, 4) else None
    if isinstance(X, list | tuple) and X and np.ndim(X[0]) in (2, 3):
        return ImageDataset.from_arrays(X)
    return None
