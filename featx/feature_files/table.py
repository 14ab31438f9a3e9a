"""`FeatureTable`: features from elsewhere, read in chunks, and what belongs to their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError

CHUNK_BYTES = 8 << 20
"""About how much is read at once."""

_MAX_WIDTH = 1 << 20


class RowSource(Protocol):
    """A matrix that is read from its first row to its last, as often as asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of features a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield arrays of shape (m, d), from the first row on."""


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """A matrix in memory, or mapped from a file.

    Parameters
    ----------
    values : ndarray of shape (n, d)
        The matrix.
    """

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of features a row."""
        rows, width = self.values.shape
        return rows, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.values.dtype

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield arrays of shape (m, d), from the first row on."""
        step = max(1, CHUNK_BYTES // (self.values.shape[1] * self.dtype.itemsize))
        for start in range(0, len(self.values), step):
            yield self.values[start : start + step]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features with the columns that were stored beside them; None for one that is not there.

    Parameters
    ----------
    rows : RowSource
        The features.
    y : array-like of length n, optional
        Labels: names, or numbers, which index `classes` when there are any.
    classes : list of str, optional
        Names of the classes.
    paths, groups, splits : list of str, optional
        One a row.
    """

    rows: RowSource
    y: Any = None
    classes: list[str] | None = None
    paths: list[str] | None = None
    groups: list[str] | None = None
    splits: list[str] | None = None


def check_matrix(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Raise `DatasetError` unless an array can be a matrix of features.

    Parameters
    ----------
    shape : tuple of int
        Its shape, as it is claimed.
    dtype : numpy.dtype
        Its type.
    where : str
        What the message calls it.

    Examples
    --------
    >>> check_matrix((5,), np.dtype("f4"), "X")
    Traceback (most recent call last):
    ...
    featx.exceptions.DatasetError: expected features of shape (n, d) in X, received (5,): ...
    """
    if dtype.kind not in "fiub":
        kind = "Python objects, which need pickle" if dtype.kind == "O" else str(dtype)
        raise DatasetError(
            f"expected features of floats in {where}, received {kind}: save them with "
            ".astype('float32')"
        )
    if len(shape) != 2:
        step = "one row an input" if len(shape) < 2 else "pool or flatten them, one row an input"
        hint = "; images are read by `featx extract`" if len(shape) in (3, 4) else ""
        raise DatasetError(
            f"expected features of shape (n, d) in {where}, received {shape}: {step}{hint}"
        )
    if 0 in shape:
        raise DatasetError(f"no features: {where} has the shape {shape}")
    if shape[1] > _MAX_WIDTH:
        raise DatasetError(
            f"expected at most {_MAX_WIDTH:,} features a row in {where}, received {shape[1]:,}"
        )
