"""Nearest class means from a stream of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featx.heads.calibrated import fit_temperature
from featx.heads.label_sums import streamed_label_sums
from featx.heads.nearest_mean import NearestMean
from featx.heads.rows import BatchSource
from featx.heads.scatter import streamed_scatter
from featx.heads.streaming import ChosenRows, judged_rows


def fit_nearest_mean_streamed(
    head: NearestMean, source: BatchSource, y: Any, *, max_ram_bytes: int
) -> NearestMean:
    """Fit `NearestMean` in two passes: means, then the temperature."""
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


def fit_nearest_mean_labels(
    estimator: NearestMean, source: BatchSource, labels: NDArray[np.uint8], *, max_ram_bytes: int
) -> tuple[list[NearestMean], NDArray[np.float64]]:
    """Fit a copy of `NearestMean` for each label, all in the same two passes."""
    estimator._validate_params()
    found = streamed_label_sums(source, labels, gram=False)
    counts = np.stack([found.rows - found.counts, found.counts], axis=1).astype(np.intp)
    sums = np.stack([found.whole - found.sums, found.sums], axis=1)
    means = sums / counts[:, :, None] + found.shift
    heads = []
    for pair in means:
        head = clone(estimator)
        head.classes_, head.n_features_in_ = np.arange(2), means.shape[2]
        head.take_means(pair, np.float32)
        head.temperature_ = 1.0
        heads.append(head)
    rows = judged_rows(np.arange(found.rows), 2 * len(heads), max_ram_bytes)
    scores = np.empty((len(heads), len(rows), 2))
    judged = labels[rows].T.astype(np.intp)
    # Of a label's only row, or the only row without it, nothing can be taken away.
    fit = np.take_along_axis(counts, judged, axis=1) >= 2
    for X, places in ChosenRows(source, found.rows, rows)(None):
        for number, head in enumerate(heads):
            some = fit[number, places]
            codes = judged[number, places[some]]
            scores[number, places[some]] = head.scores_without(
                X[some], codes, means[number], counts[number]
            )
    for number, head in enumerate(heads):
        some = fit[number]
        if some.any():
            head.temperature_ = fit_temperature(scores[number, some], judged[number, some])
    return heads, np.empty(0)
