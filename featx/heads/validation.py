"""What every head asks of the arrays that it is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError

__all__ = ["check_training", "validated_training"]


def check_training(X: Any, y: Any) -> None:
    """Refuse arrays that no head can learn from, before any time is spent on them.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features, one row an image.
    y : array-like of shape (n,)
        Labels, one an image.

    Raises
    ------
    HeadError
        The features are no matrix or hold NaN or infinity, the labels are of another length, or
        there is one class only.

    Examples
    --------
    >>> check_training([[0.0], [1.0]], ["ants", "bees"])
    >>> check_training([[0.0], [1.0]], ["ants", "ants"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featx.exceptions.HeadError: one class only: 'ants'; a classifier needs at least two: ...
    """
    features, labels = np.asarray(X), np.asarray(y)
    if features.ndim != 2 or features.size == 0:
        raise HeadError(
            f"features must be a matrix of shape (images, width) with at least one entry, received "
            f"shape {features.shape}: pass one row an image"
        )
    if labels.ndim != 1:
        raise HeadError(
            f"labels must be one a feature row, of shape ({len(features)},), received shape "
            f"{labels.shape}: pass one label an image"
        )
    _require_same_length(features, labels)
    _require_finite(features)
    _require_two_classes(np.unique(labels))


def validated_training(
    estimator: Any, X: Any, y: Any, *, dtype: Any
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.intp]]:
    """Give (X, y) as arrays with the classes found, and record the width on the estimator.

    Parameters
    ----------
    estimator : estimator
        Gains ``n_features_in_`` and, from a data frame, ``feature_names_in_``.
    X : array-like of shape (n, d)
        Features.
    y : array-like of shape (n,)
        Labels.
    dtype : dtype or list of dtype
        What scikit-learn's ``validate_data`` takes: the features become the first of a list
        unless they already are of one of the others.

    Returns
    -------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
    classes : ndarray of shape (k,)
        Sorted.
    codes : ndarray of shape (n,), intp
        The place of each label in ``classes``.

    Raises
    ------
    HeadError
        As `check_training`; what scikit-learn's own validation refuses stays its ``ValueError``,
        since its checks require its wording.
    """
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data

    if y is not None:
        _require_same_length(X, y)
    X, y = validate_data(estimator, X, y, dtype=dtype, ensure_all_finite=False)
    check_classification_targets(y)
    _require_finite(X)
    classes, codes = np.unique(y, return_inverse=True)
    _require_two_classes(classes)
    return X, y, classes, codes


def _require_same_length(X: Any, y: Any) -> None:
    rows, labels = (a.shape[0] if getattr(a, "shape", ()) else _length(a) for a in (X, y))
    if rows is not None and labels is not None and rows != labels:
        raise HeadError(
            f"expected one label a feature row, received {rows} rows and {labels} labels: "
            "take both from the same dataset, in the same order"
        )


def _length(values: Any) -> int | None:
    try:
        return len(values)
    except TypeError:
        return None


def _require_finite(X: NDArray[Any]) -> None:
    if X.dtype.kind not in "fc":
        return
    # The sum is one pass without a copy; only when it is odd are the rows looked at singly.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(X, dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if bad.size:
        raise HeadError(
            f"features must be finite, received NaN or inf in {bad.size} of {len(X)} rows "
            f"(the first is row {bad[0]}): leave these rows out or extract them again"
        )


def _require_two_classes(classes: NDArray[Any]) -> None:
    if len(classes) < 2:
        raise HeadError(
            f"one class only: {classes.tolist()[0]!r}; a classifier needs at least two: "
            "add images of another class"
        )
