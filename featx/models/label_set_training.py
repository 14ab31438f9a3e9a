"""Train and measure a classifier whose images have any number of labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.heads.table import make_head
from featx.images.labels import SEPARATOR, label_matrix, read_label_sets
from featx.models.classifier import ImageClassifier
from featx.models.memory_training import MemoryFit
from featx.models.metrics import score_label_sets
from featx.models.streamed_training import StreamedFit
from featx.selection.splits import label_folds, leak_groups

_Fit = Callable[[NDArray[np.intp]], Any]
_Says = Callable[[Any, NDArray[np.intp]], NDArray[np.floating[Any]]]


def train_label_sets(
    model: ImageClassifier,
    features: Features,
    place: dict[str, Any],
    y: NDArray[np.str_],
    rows: NDArray[np.intp],
    held_out: NDArray[np.intp] | None,
    cv: int,
    bound: int | None = None,
) -> dict[str, Any]:
    """Fit a classifier on all rows to train on, and measure it on rows that it has not seen."""
    names, targets = label_targets(y, rows)
    if len(names) < 2:
        raise DatasetError(
            f"{features.name!r} has {len(names)} label{'s' * (len(names) != 1)}: a classifier of "
            f"several labels an image needs two or more, written as ant{SEPARATOR}winged in the "
            "column label"
        )
    if held_out is not None:
        what = f"the held-out part of {features.name!r}"
        targets[held_out] = label_matrix(y[held_out].tolist(), names.tolist(), what=what)
    fit, says = _ways(model, features, place, targets, bound)
    spec = features.spec(**place)
    model.take_head(fit(rows), spec, n_features=features.width(**place), labels=names)
    mean = f", mean over {1 + model.views_averaged} views" if model.views_averaged else ""
    if held_out is not None:
        scores = score_label_sets(targets[held_out], says(model.head_, held_out), names)
        return {"protocol": f"held-out split of {len(held_out)} images{mean}", **scores}
    if not cv:
        return {"protocol": "not measured"}
    named = features.groups
    groups = leak_groups(
        features.keys[rows], None if named is None else named[rows].tolist(), len(rows)
    )
    truth = targets[rows]
    try:
        folds = label_folds(truth, folds=cv, groups=groups, seed=model.random_state)
    except DatasetError as error:
        return {"protocol": f"not measured: {error}"}
    proba = np.zeros(truth.shape, np.float64 if bound is None else np.float32)
    for training, testing in folds:
        proba[testing] = says(fit(rows[training]), rows[testing])
    protocol = f"{len(folds)}-fold cross-validation, equal images on one side{mean}"
    return {"protocol": protocol, **score_label_sets(truth, proba, names)}


def label_targets(
    y: NDArray[Any], rows: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Read the labels of rows, a byte each."""
    texts, codes = np.unique(y[rows], return_inverse=True)
    names, sets = read_label_sets(texts.tolist())
    targets = np.zeros((len(y), len(names)), dtype=np.uint8)
    targets[rows] = sets.astype(np.uint8)[codes]
    return names, targets


def _ways(
    model: ImageClassifier,
    features: Features,
    place: dict[str, Any],
    targets: NDArray[np.uint8],
    bound: int | None,
) -> tuple[_Fit, _Says]:
    """Return how a head is fitted on rows, and how it is asked of rows: in memory or on batches."""
    views = features.views(**place)

    def head() -> Any:
        return make_head(model.head, seed=model.random_state, multilabel=True)

    fitting: MemoryFit | StreamedFit
    if bound is None:
        fitting = MemoryFit(features, place, targets, views)
    else:
        fitting = StreamedFit(features, place, targets, views, bound)
    return lambda rows: fitting.fit(head(), rows), partial(fitting.probabilities, model)
