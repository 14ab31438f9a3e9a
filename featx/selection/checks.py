"""What a search refuses before it spends time, with what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, FeaturesError


def check_length(rows: int, labels: Sequence[Any] | NDArray[Any], what: str) -> None:
    """Raise `DatasetError` where there is not one label a row."""
    if len(labels) != rows:
        raise DatasetError(
            f"expected one label for each of {rows:,} rows of {what}, received {len(labels):,}: "
            "take features and labels from the same dataset, in the same order"
        )


def check_classes(y: NDArray[Any]) -> None:
    """Raise `DatasetError` where there are fewer than two classes."""
    names, counts = np.unique(y, return_counts=True)
    if len(names) < 2:
        found = (
            f"one class only: {str(names[0])!r} ({counts[0]:,} images)" if len(names) else "none"
        )
        raise DatasetError(
            f"a search needs images of two classes or more, received {found}: add images of "
            "another class, one folder each"
        )


def check_block(X: NDArray[Any], what: str) -> str:
    """Look through the features of a block."""
    if X.ndim != 2 or X.dtype.kind not in "fiu" or not X.size:
        raise FeaturesError(
            f"expected {what} to be a matrix of numbers, one row an image, received shape "
            f"{X.shape} of {X.dtype}: pass one row an image"
        )
    # NaN and infinity show in the smallest and the greatest of their columns.
    with np.errstate(invalid="ignore"):
        low, high = X.min(axis=0), X.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        raise FeaturesError(
            f"{what} must be finite, received NaN or infinity in {bad.size:,} of {len(X):,} rows "
            f"(the first is row {bad[0]}): leave these images out, or extract them again"
        )
    constant = int((low == high).sum())
    if constant == X.shape[1]:
        raise FeaturesError(
            f"all {constant:,} columns of {what} are constant, the same in all {len(X):,} images, "
            "so that no head can tell classes apart: look at the images and at the tap they are of"
        )
    if constant:
        return (
            f"{what}: {constant:,} of {X.shape[1]:,} columns {'are' if constant > 1 else 'is'} the "
            f"same in all images and {'say' if constant > 1 else 'says'} nothing of their classes"
        )
    return ""
