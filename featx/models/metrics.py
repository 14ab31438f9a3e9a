"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["score_predictions"]


def score_predictions(
    y: NDArray[Any], proba: NDArray[np.floating[Any]], classes: NDArray[Any]
) -> dict[str, Any]:
    """Return the scores of predicted probabilities.

    Parameters
    ----------
    y : ndarray of shape (n,)
        True labels, each among `classes`.
    proba : ndarray of shape (n, k)
        Probabilities in the order of `classes`.
    classes : ndarray of shape (k,)
        Labels, sorted.

    Returns
    -------
    dict
        ``images``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``log_loss`` (natural
        logarithm, probabilities clipped at 1e-15), ``confusion`` (rows are true classes, columns
        predicted ones) and ``classes``.

    Examples
    --------
    >>> scores = score_predictions(np.array(["a", "b"]), np.array([[0.9, 0.1], [0.6, 0.4]]),
    ...                            np.array(["a", "b"]))
    >>> scores["accuracy"], scores["confusion"]
    (0.5, [[1, 0], [1, 0]])
    """
    from sklearn.metrics import confusion_matrix, f1_score

    truth = np.searchsorted(classes, y)
    predicted = proba.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, labels=np.arange(len(classes)))
    present = confusion.sum(axis=1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(axis=1)[present]
    chosen = np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)
    f1 = f1_score(
        truth, predicted, labels=np.flatnonzero(present), average="macro", zero_division=0.0
    )
    return {
        "images": len(truth),
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1),
        "log_loss": float(-np.log(chosen).mean()),
        "confusion": confusion.tolist(),
        "classes": [str(name) for name in classes],
    }
