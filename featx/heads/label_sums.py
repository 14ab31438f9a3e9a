"""Sums over a stream of rows that have any number of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError
from featx.heads.rows import BatchSource


@dataclass(frozen=True, slots=True, eq=False)
class LabelSums:
    """Sums over rows, of features less a shift that keeps them near zero.

    Parameters
    ----------
    shift : ndarray of shape (d,), float64
        What was subtracted from every row.
    rows : int
        How many there are.
    whole : ndarray of shape (d,), float64
        Sum of all rows.
    counts : ndarray of shape (k,), float64
        Rows with each label.
    sums : ndarray of shape (k, d), float64
        Sums of the rows with each label.
    gram : ndarray of shape (d, d), float64, or None
        Sum of the rows' outer products, if it was asked for.
    """

    shift: NDArray[np.float64]
    rows: int
    whole: NDArray[np.float64]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    gram: NDArray[np.float64] | None


def streamed_label_sums(source: BatchSource, labels: NDArray[Any], *, gram: bool) -> LabelSums:
    """Give the sums over all rows of a stream, from one pass over it."""
    found: LabelSums | None = None
    for X, rows in source(None):
        if found is None:
            shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
            width = X.shape[1]
            found = LabelSums(
                shift.astype(np.float64),
                len(labels),
                np.zeros(width),
                labels.sum(axis=0, dtype=np.float64),
                np.zeros((labels.shape[1], width)),
                np.zeros((width, width)) if gram else None,
            )
        near = X - shift
        found.whole[:] += near.sum(axis=0, dtype=np.float64)
        found.sums[:] += labels[rows].T.astype(near.dtype) @ near
        if found.gram is not None:
            found.gram[:] += near.T @ near
    if found is None:
        raise HeadError("the stream gave no batch: expected pairs (X, rows)")
    return found
