"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScoreSums", "score_predictions"]


class ScoreSums:
    """Scores of predicted probabilities that come in pieces.

    Parameters
    ----------
    classes : ndarray of shape (k,)
        Labels, sorted.
    """

    def __init__(self, classes: NDArray[Any]) -> None:
        self.classes = classes
        self._confusion = np.zeros((len(classes), len(classes)), dtype=np.intp)
        self._log_loss = 0.0

    def add(self, y: NDArray[Any], proba: NDArray[np.floating[Any]]) -> None:
        """Count labels (m,), each among the classes, and their probabilities (m, k)."""
        k = len(self.classes)
        truth = np.searchsorted(self.classes, y)
        pairs = np.bincount(truth * k + proba.argmax(axis=1), minlength=k * k)
        self._confusion += pairs.reshape(k, k)
        chosen = np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)
        self._log_loss -= float(np.log(chosen).sum(dtype=np.float64))

    def scores(self) -> dict[str, Any]:
        """Return what `score_predictions` does."""
        confusion, images = self._confusion, int(self._confusion.sum())
        right = confusion.diagonal()
        present = confusion.sum(axis=1) > 0
        recall = right[present] / confusion.sum(axis=1)[present]
        both = (confusion.sum(axis=0) + confusion.sum(axis=1))[present]
        return {
            "images": images,
            "accuracy": float(right.sum() / images),
            "balanced_accuracy": float(recall.mean()),
            "macro_f1": float((2 * right[present] / both).mean()),
            "log_loss": self._log_loss / images,
            "confusion": confusion.tolist(),
            "classes": [str(name) for name in self.classes],
        }


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
    sums = ScoreSums(classes)
    sums.add(y, proba)
    return sums.scores()
