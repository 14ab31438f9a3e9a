"""Nearest class means from a stream of batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from featx.heads.calibrated import fit_temperature
from featx.heads.dense_batches import BatchSource
from featx.heads.nearest_mean import NearestMean
from featx.heads.scatter import streamed_scatter
from featx.heads.streaming import ChosenRows, judged_rows

__all__ = ["fit_nearest_mean_streamed"]


def fit_nearest_mean_streamed(
    head: NearestMean, source: BatchSource, y: Any, *, max_ram_bytes: int
) -> NearestMean:
    """Fit `NearestMean` in two passes: means, then the temperature.

    Parameters
    ----------
    head : NearestMean
        Fitted in place.
    source : BatchSource
    y : ndarray of shape (n,)
    max_ram_bytes : int
        Bounds the rows that the temperature is fitted on.

    Returns
    -------
    head : NearestMean
    """
    head._validate_params()
    head.classes_, codes = np.unique(y, return_inverse=True)
    scatter = streamed_scatter(source, codes, len(head.classes_), gram=False)
    counts = scatter.counts.astype(np.intp)
    means = scatter.sums / counts[:, None] + scatter.shift
    head.n_features_in_ = means.shape[1]
    head.take_means(means, np.float32)
    head.temperature_ = 1.0
    rows = judged_rows(np.flatnonzero(counts[codes] >= 2), len(counts), max_ram_bytes)
    if rows.size:
        scores = np.empty((len(rows), len(counts)))
        for X, places in ChosenRows(source, len(codes), rows)(None):
            scores[places] = head.scores_without(X, codes[rows[places]], means, counts)
        head.temperature_ = fit_temperature(scores, codes[rows])
    return head
