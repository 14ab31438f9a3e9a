"""Estimators of other packages as heads, by their import path and with trust."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils.validation import check_is_fitted

from featx.exceptions import HeadError, reason
from featx.heads.rows import Floats
from featx.heads.storage import PACKAGES
from featx.heads.table import HEADS, parse_head, require_known


class EncodedLabels(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that is given codes from 0 on in place of labels.

    Parameters
    ----------
    estimator : estimator
        A classifier with ``predict_proba``.

    Attributes
    ----------
    estimator_ : estimator
        Fitted.
    classes_ : ndarray of shape (k,)
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> EncodedLabels:
        """Fit on features (n, d) and labels (n,), rows weighted by (n,)."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self.n_features_in_ = int(np.shape(X)[1])
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.estimator_ = clone(self.estimator).fit(X, codes, **weights)
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probability of each class, shape (n, k)."""
        check_is_fitted(self)
        return np.asarray(self.estimator_.predict_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return the label of the highest probability, (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


def is_foreign(head: object) -> bool:
    """Return whether a head is text that names an estimator of another package by its path."""
    if not isinstance(head, str):
        return False
    name = parse_head(head).name
    return name not in HEADS and "." in name and not name.startswith("sklearn.")


def trusted_head(head: Any, *, seed: int = 0, saved: bool = False) -> Any:
    """Return the estimator that the text of a trusted head names, and any other head as it is.

    With `saved`, only an estimator that a model file can hold is taken.
    """
    if not is_foreign(head):
        return head
    parsed = parse_head(head)
    module, _, name = parsed.name.rpartition(".")
    if saved and module.partition(".")[0] not in PACKAGES:
        raise HeadError(
            f"a model with {parsed.name!r} cannot be saved: expected a path below sklearn, "
            f"{', '.join(PACKAGES)}; in Python, featx.train takes any estimator"
        )
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise HeadError(
            f"{parsed.name!r} cannot be imported ({reason(error)}): install its package, or write "
            "the path as in lightgbm.LGBMClassifier"
        ) from error
    if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "predict_proba")):
        raise HeadError(
            f"{parsed.name!r} is no classifier: expected a class with fit and predict_proba"
        )
    if parsed.values:
        raise HeadError(
            f"{parsed.name!r} takes parameters by name, received {parsed.values[0]!r}: write "
            f"'{parsed.name}:parameter={parsed.values[0]}'"
        )
    known = cls().get_params()
    require_known(parsed.name, parsed.params, known)
    seeds = {"random_state": seed} if "random_state" in known else {}
    return cls(**{**seeds, **parsed.params})


def encoded(estimator: Any) -> Any:
    """Return an estimator that is given codes where its package takes no text for labels."""
    package = type(estimator).__module__.partition(".")[0]
    return EncodedLabels(estimator) if package in PACKAGES else estimator
