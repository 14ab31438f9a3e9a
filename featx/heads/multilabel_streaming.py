"""Several labels an image from a stream of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featx.heads.multilabel import MultiLabelHead, check_labels
from featx.heads.rows import BatchSource
from featx.heads.streaming import fit_core, labels_fitter


def fit_multilabel_streamed(
    head: MultiLabelHead, source: BatchSource, y: Any, *, max_ram_bytes: int
) -> MultiLabelHead:
    """Fit `MultiLabelHead` on a stream of batches."""
    head._validate_params()
    labels = np.ascontiguousarray(check_labels(y, len(y)), dtype=np.uint8)
    head.n_features_in_ = int(next(iter(source(None)))[0].shape[1])
    head.classes_ = np.arange(labels.shape[1])
    counts = labels.sum(axis=0, dtype=np.intp)
    head.shares_ = counts / len(labels)
    head.varying_ = np.flatnonzero((counts > 0) & (counts < len(labels)))
    head.estimators_, head.temperatures_ = [], np.empty(0)
    targets = labels if len(head.varying_) == labels.shape[1] else labels[:, head.varying_]
    together = labels_fitter(head.estimator) if len(head.varying_) >= 2 else None
    found = None
    if together:
        found = together(head.estimator, source, targets, max_ram_bytes=max_ram_bytes)
    if found is not None:
        head.estimators_, head.temperatures_ = found
        return head
    for column in targets.T:
        target: NDArray[np.intp] = column.astype(np.intp)
        head.estimators_.append(
            fit_core(clone(head.estimator), source, target, max_ram_bytes=max_ram_bytes)
        )
    return head
