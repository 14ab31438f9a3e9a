"""Train and measure a classifier whose images have any number of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.exceptions import DatasetError
from featx.heads.registry import make_head
from featx.images.label_sets import SEPARATOR, label_matrix, read_label_sets
from featx.models.classifier import ImageClassifier
from featx.models.metrics import score_label_sets
from featx.selection.splits import label_folds, leak_groups

__all__ = ["train_label_sets"]


def train_label_sets(
    model: ImageClassifier,
    features: Features,
    place: dict[str, Any],
    y: NDArray[np.str_],
    rows: NDArray[np.intp],
    held_out: NDArray[np.intp] | None,
    cv: int,
) -> dict[str, Any]:
    """Fit a classifier on all rows to train on, and measure it on rows that it has not seen.

    Parameters
    ----------
    model : ImageClassifier
        Takes the head.
    features : Features
    place : dict
        ``backbone`` and ``tap`` of the block.
    y : ndarray of shape (n,) of str
        Labels of each row, separated by ``|``.
    rows : ndarray of int
        Rows to train on.
    held_out : ndarray of int, optional
        Rows to measure on; else it is cross-validated.
    cv : int
        Number of folds; 0 measures nothing.

    Returns
    -------
    metrics : dict
        ``protocol``, and the scores of `score_label_sets`.

    Raises
    ------
    DatasetError
        For fewer than two labels, or labels of held-out images that no other has.
    """
    names, targets = read_label_sets(y[rows].tolist())
    if len(names) < 2:
        raise DatasetError(
            f"{features.name!r} has {len(names)} label{'s' * (len(names) != 1)}: a classifier of "
            f"several labels an image needs two or more, written as ant{SEPARATOR}winged in the "
            "column label"
        )
    held = None
    if held_out is not None:
        what = f"the held-out part of {features.name!r}"
        held = label_matrix(y[held_out].tolist(), names.tolist(), what=what)
    views = features.views(**place)
    parts = [features.matrix(**place), *(features.matrix(**place, view=v) for v in views)]

    def fit(chosen: NDArray[np.intp]) -> Any:
        X = np.concatenate([part[rows[chosen]] for part in parts])
        X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)
        head = make_head(model.head, seed=model.random_state, multilabel=True)
        return head.fit(X, np.tile(targets[chosen], (len(parts), 1)))

    def says(head: Any, places: NDArray[np.intp]) -> NDArray[np.float64]:
        looked_at = parts[: 1 + model.views_averaged]
        found: NDArray[np.float64] = np.mean(
            [head.predict_proba(part[places]) for part in looked_at], axis=0
        )
        return found

    spec = features.spec(**place)
    head = fit(np.arange(len(rows)))
    model.take_head(head, spec, n_features=parts[0].shape[1], labels=names)
    mean = f", mean over {1 + model.views_averaged} views" if model.views_averaged else ""
    if held_out is not None and held is not None:
        scores = score_label_sets(held, says(model.head_, held_out), names)
        return {"protocol": f"held-out split of {len(held_out)} images{mean}", **scores}
    if not cv:
        return {"protocol": "not measured"}
    named = features.groups
    groups = leak_groups(
        features.keys[rows], None if named is None else named[rows].tolist(), len(rows)
    )
    try:
        folds = label_folds(targets, folds=cv, groups=groups, seed=model.random_state)
    except DatasetError as error:
        return {"protocol": f"not measured: {error}"}
    proba = np.zeros(targets.shape)
    for training, testing in folds:
        proba[testing] = says(fit(training), rows[testing])
    protocol = f"{len(folds)}-fold cross-validation, equal images on one side{mean}"
    return {"protocol": protocol, **score_label_sets(targets, proba, names)}
