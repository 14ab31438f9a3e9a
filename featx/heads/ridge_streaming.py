"""Ridge regression on the classes from a stream of batches: one pass for the normal equations."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.class_weight import compute_class_weight

from featx.exceptions import HeadError
from featx.heads.dense_batches import BatchSource
from featx.heads.scatter import streamed_scatter
from featx.memory import shown_bytes

__all__ = ["fit_ridge_streamed", "require_square"]

_COPIES = 3


def fit_ridge_streamed(head: Any, source: BatchSource, y: Any, *, max_ram_bytes: int) -> Any:
    """Fit ``RidgeClassifier`` by its normal equations, in double precision.

    Parameters
    ----------
    head : RidgeClassifier
        Fitted in place.
    source : BatchSource
    y : ndarray of shape (n,)
    max_ram_bytes : int
        Must hold three matrices of the number of features squared.

    Returns
    -------
    head : RidgeClassifier

    Raises
    ------
    HeadError
        The bound is too low, or ``positive=True``, which has no normal equations.
    """
    if head.positive:
        raise HeadError("ridge with positive=True has to see all rows at once: leave it at False")
    binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(y)
    classes = binarizer.classes_
    codes = np.searchsorted(classes, y)
    weights = np.asarray(compute_class_weight(head.class_weight, classes=classes, y=y))
    require_square(source, max_ram_bytes, _COPIES)
    scatter = streamed_scatter(source, codes, len(classes), gram=True, weights=weights)
    assert scatter.gram is not None
    gram, counts = scatter.gram, weights * scatter.counts
    sums = weights[:, None] * scatter.sums
    total, whole = counts.sum(), sums.sum(axis=0)
    mean = whole / total
    # Of targets 1 and -1, weighted: what each class adds twice, less everything.
    product, share = 2 * sums - whole, 2 * counts - total
    if head.fit_intercept:
        gram -= np.outer(mean, whole)
        product -= np.outer(share, mean)
    else:
        shift = scatter.shift
        gram += np.outer(whole, shift) + np.outer(shift, whole) + total * np.outer(shift, shift)
        product += np.outer(share, shift)
    if len(classes) == 2:
        product, share = product[1:], share[1:]
    gram.flat[:: len(gram) + 1] += head.alpha
    try:
        coef = scipy.linalg.solve(gram, product.T, assume_a="pos", check_finite=False).T
    except scipy.linalg.LinAlgError:
        coef = scipy.linalg.lstsq(gram, product.T)[0].T
    head._label_binarizer = binarizer
    with suppress(AttributeError):  # a property of that up to scikit-learn 1.8
        head.classes_ = classes
    head.coef_ = coef.astype(np.float32)
    head.intercept_ = np.float64(0.0)
    if head.fit_intercept:
        head.intercept_ = (share / total - coef @ (mean + scatter.shift)).astype(np.float32)
    head.n_features_in_ = coef.shape[1]
    head.n_iter_, head.solver_ = None, "cholesky"
    return head


def require_square(source: BatchSource, max_ram_bytes: int, copies: int) -> int:
    """Refuse a bound that cannot hold matrices of the number of features squared.

    Parameters
    ----------
    source : BatchSource
        Its first batch says how many features there are.
    max_ram_bytes : int
    copies : int
        How many matrices, of double precision.

    Returns
    -------
    width : int
        Number of features.

    Raises
    ------
    HeadError
        It cannot.
    """
    width = int(next(iter(source(None)))[0].shape[1])
    needed = copies * 8 * width**2
    if needed > max_ram_bytes:
        raise HeadError(
            f"this head sums products of {width:,} features, for which it needs "
            f"{shown_bytes(needed)}, more than the {shown_bytes(max_ram_bytes)} that it may have "
            "beside the batches: raise --max-ram (max_ram=...), or take nearest-mean, logistic or "
            "dense"
        )
    return width
