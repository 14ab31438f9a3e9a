"""Scores of classes in scikit-learn's form: one column alone where there are two classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABEL_THRESHOLD = 0.5
"""Probability above which an image is said to have a label, where it may have several."""


class LikeliestClass:
    """What heads with ``predict_proba`` and ``classes_`` answer with, so that both say the same."""

    classes_: NDArray[Any]
    predict_proba: Callable[[Any], NDArray[np.floating[Any]]]

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels of the highest probability; of equal ones, the first."""
        return best_labels(self.predict_proba(X), self.classes_)


def best_labels(scores: NDArray[np.floating[Any]], classes: NDArray[Any]) -> NDArray[Any]:
    """Return the labels (n,) of the highest scores (n, k), or of positive ones (n,)."""
    best = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
    labels: NDArray[Any] = classes[best]
    return labels


def both_columns(scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return scores (n, k) as they are, and those of two classes (n,) beside zeros."""
    if scores.ndim == 1:
        return np.column_stack([np.zeros_like(scores), scores])
    return scores
