"""What dense heads learn: class codes or labels of 0 and 1, and what each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_sample_weight, validate_data

from featx.exceptions import HeadError, reason
from featx.heads.validation import require_finite, validated_training


@dataclass(frozen=True, eq=False)
class Problem:
    """Targets of all rows and what they count; see `featx.heads.training.Rows`.

    Parameters
    ----------
    classes : ndarray of shape (k,)
        Sorted labels; for multi-label targets 0 to k - 1.
    targets : ndarray of shape (n,), int32, or (n, k), float32
    weights : ndarray of the shape of ``targets``, float32
        With a mean of 1 over ``rows``.
    rows : ndarray of int
        Rows of a weight above 0.
    multilabel : bool
    """

    classes: NDArray[Any]
    targets: NDArray[Any]
    weights: NDArray[np.float32]
    rows: NDArray[np.intp]
    multilabel: bool


def is_multilabel(y: Any) -> bool:
    """Whether targets are a matrix of two columns or more, one a label."""
    shape: tuple[int, ...] | None = getattr(y, "shape", None)
    if shape is None:
        shape = np.shape(y) if _is_nested(y) else ()
    return len(shape) == 2 and shape[1] > 1


def read_training(
    head: Any, X: Any, y: Any, sample_weight: Any
) -> tuple[NDArray[np.float32], Problem]:
    """Check what a head is given to learn from."""
    if is_multilabel(y):
        features = validate_data(head, X, dtype=np.float32, ensure_all_finite=False)
        require_finite(features)
        return features, read_targets(
            y, len(features), class_weight=head.class_weight, sample_weight=sample_weight
        )
    features, y, _, _ = validated_training(head, X, y, dtype=np.float32)
    return features, read_targets(
        y, len(features), class_weight=head.class_weight, sample_weight=sample_weight
    )


def read_targets(y: Any, count: int, *, class_weight: Any, sample_weight: Any) -> Problem:
    """Turn labels into targets and weights."""
    labels = labels_of(y, count)
    rows_weights = _check_sample_weight(
        sample_weight, np.empty((count, 1), np.float32), dtype=np.float32, ensure_non_negative=True
    )
    if labels.ndim == 2:
        classes, targets = np.arange(labels.shape[1]), labels.astype(np.float32)
        weights = rows_weights[:, None] * _weights_of_labels(class_weight, targets)
        rows = np.flatnonzero(weights.any(axis=1))
    else:
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise HeadError(
                f"one class only: {classes.tolist()[0]!r}; a classifier needs at least two: "
                "add images of another class"
            )
        targets = codes.astype(np.int32)
        weights = rows_weights * _weights_of_classes(class_weight, classes, labels)[codes]
        rows = np.flatnonzero(weights > 0)
    if not rows.size:
        raise HeadError(
            "every image has the weight 0, by its class or its own: expected some above 0"
        )
    weights = (weights / weights[rows].mean(dtype=np.float64)).astype(np.float32)
    return Problem(classes, targets, weights, rows, labels.ndim == 2)


def labels_of(y: Any, count: int) -> NDArray[Any]:
    """Check labels by themselves and give them as an array of one or two dimensions."""
    labels = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    if labels.shape[:1] != (count,) or labels.ndim > 2:
        raise HeadError(
            f"expected one label a feature row, received {count} rows and labels of shape "
            f"{labels.shape}: take both from the same dataset, in the same order"
        )
    if labels.ndim == 1:
        return labels
    kind = type_of_target(labels)
    if kind != "multilabel-indicator" and not np.isin(labels, (0, 1)).all():
        raise HeadError(
            f"labels of shape {labels.shape} must be 0 or 1, a column for each label, received "
            f"{kind} targets: pass one column of class labels for one class an image"
        )
    return labels


def _weights_of_classes(
    class_weight: Any, classes: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float32]:
    try:
        weights = compute_class_weight(class_weight, classes=classes, y=y)
    except ValueError as error:
        raise HeadError(
            f"class_weight={class_weight!r} does not fit the labels: {reason(error)}"
        ) from error
    return np.asarray(weights, dtype=np.float32)


def _weights_of_labels(class_weight: Any, targets: NDArray[np.float32]) -> NDArray[np.float32]:
    count, labels = targets.shape
    present = absent = np.ones(labels, dtype=np.float32)
    if class_weight == "balanced":
        positives = targets.sum(axis=0)
        present = count / (2 * np.maximum(positives, 1))
        absent = count / (2 * np.maximum(count - positives, 1))
    elif isinstance(class_weight, Mapping):
        unknown = [key for key in class_weight if key not in range(labels)]
        if unknown:
            raise HeadError(
                f"class_weight={class_weight!r} does not fit the labels: expected columns from 0 "
                f"to {labels - 1}, received {unknown[0]!r}: number the labels as y does"
            )
        present = np.array([class_weight.get(i, 1.0) for i in range(labels)], np.float32)
    return np.where(targets > 0, present, absent).astype(np.float32)


def _is_nested(y: Any) -> bool:
    return (
        isinstance(y, list | tuple) and len(y) > 0 and isinstance(y[0], list | tuple | np.ndarray)
    )
