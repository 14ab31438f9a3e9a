"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CONFUSED = 256
"""Classes up to which training keeps a confusion matrix."""
CALIBRATION_BINS = 15
"""Bins of equal width over the highest probability, from 0 to 1."""


class ScoreSums:
    """Scores of predicted probabilities that come in pieces."""

    def __init__(self, classes: NDArray[Any]) -> None:
        self.classes = classes
        # Only pairs that occur: of 10,000 classes there are as many as images, not 100 million.
        self._pairs = np.empty(0, dtype=np.intp)
        self._counts = np.empty(0, dtype=np.intp)
        self._log_loss = 0.0
        self._top5 = 0
        self._gaps = np.zeros(CALIBRATION_BINS)

    def add(self, y: NDArray[Any], proba: NDArray[np.floating[Any]]) -> None:
        """Count labels (m,), each among the classes, and their probabilities (m, k)."""
        truth = class_codes(self.classes, y)
        predicted = proba.argmax(axis=1)
        pairs = np.concatenate([self._pairs, truth * len(self.classes) + predicted])
        counts = np.concatenate([self._counts, np.ones(len(truth), dtype=np.intp)])
        self._pairs, places = np.unique(pairs, return_inverse=True)
        self._counts = np.zeros(len(self._pairs), dtype=np.intp)
        np.add.at(self._counts, places, counts)
        chosen = np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)
        self._log_loss -= float(np.log(chosen).sum(dtype=np.float64))
        self._top5 += int(hits_top5(truth, proba).sum())
        confidence = proba.max(axis=1)
        self._gaps += np.bincount(
            bin_confidences(confidence),
            weights=confidence - (predicted == truth),
            minlength=CALIBRATION_BINS,
        )

    def scores(self, *, most_confused: int | None = None) -> dict[str, Any]:
        """Return what `score_predictions` does; no ``confusion`` of more classes than these."""
        k, images = len(self.classes), int(self._counts.sum())
        truth, predicted = np.divmod(self._pairs, k)
        same = truth == predicted
        own, guesses = np.zeros((2, k), dtype=np.intp)
        right = np.zeros(k, dtype=np.intp)
        np.add.at(own, truth, self._counts)
        np.add.at(guesses, predicted, self._counts)
        right[truth[same]] = self._counts[same]
        present = own > 0
        scores: dict[str, Any] = {
            "images": images,
            "accuracy": float(right.sum() / images),
            "balanced_accuracy": float((right[present] / own[present]).mean()),
            "macro_f1": float((2 * right / (own + guesses).clip(1))[present].mean()),
            "log_loss": self._log_loss / images,
            "top5_accuracy": self._top5 / images,
            "calibration_error": float(np.abs(self._gaps).sum() / images),
        }
        if most_confused is None or k <= most_confused:
            confusion = [[0] * k for _ in range(k)]
            for row, column, count in zip(truth, predicted, self._counts.tolist(), strict=True):
                confusion[row][column] = count
            scores["confusion"] = confusion
        return {**scores, "classes": [str(name) for name in self.classes]}


def class_codes(classes: NDArray[Any], y: NDArray[Any]) -> NDArray[np.intp]:
    """Return the place of each label (n,) among the classes (k,), which need not be sorted."""
    order = np.argsort(classes)
    codes: NDArray[np.intp] = order[np.searchsorted(classes, y, sorter=order)]
    return codes


def score_predictions(
    y: NDArray[Any], proba: NDArray[np.floating[Any]], classes: NDArray[Any]
) -> dict[str, Any]:
    """Return the scores of predicted probabilities.

    Notes
    -----
    The calibration error is the expected one: the mean, over images, of the distance between the
    accuracy and the mean confidence of the image's bin, 15 bins of equal width (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, eq. 3).
    """
    sums = ScoreSums(classes)
    sums.add(y, proba)
    return sums.scores()


def score_label_sets(
    truth: NDArray[np.integer[Any]],
    proba: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    *,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Return the scores of predicted probabilities where an image has any number of labels."""
    from sklearn.metrics import average_precision_score

    given = proba > threshold
    positives, found = truth.sum(axis=0, dtype=np.intp), given.sum(axis=0)
    right = (truth * given).sum(axis=0, dtype=np.intp)
    present = np.flatnonzero(positives)
    f1 = 2 * right / np.maximum(positives + found, 1)
    precision = {
        label: float(average_precision_score(truth[:, label], proba[:, label]))
        for label in present.tolist()
    }
    decided = int(positives.sum() + found.sum())
    return {
        "images": len(truth),
        "mean_average_precision": float(np.mean(list(precision.values()))) if precision else 0.0,
        "micro_f1": float(2 * right.sum() / decided) if decided else 0.0,
        "macro_f1": float(f1[present].mean()) if present.size else 0.0,
        "exact_match": float((given == truth).all(axis=1).mean()),
        "labels": [
            {
                "label": str(name),
                "images": int(positives[label]),
                "average_precision": precision.get(label),
                "f1": float(f1[label]) if positives[label] else None,
                "confusion": [
                    [
                        int(len(truth) - positives[label] - found[label] + right[label]),
                        int(found[label] - right[label]),
                    ],
                    [int(positives[label] - right[label]), int(right[label])],
                ],
            }
            for label, name in enumerate(labels)
        ],
    }


def hits_top5(truth: NDArray[np.intp], proba: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return whether fewer than 5 classes come before the true one, shape (n,)."""
    own = proba[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(proba.shape[1]) < truth[:, None]
    before = (proba > own) | ((proba == own) & earlier)
    hits: NDArray[np.bool_] = before.sum(axis=1) < 5
    return hits


def bin_confidences(confidence: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return the bin of each confidence, 0 to `CALIBRATION_BINS` - 1; 1.0 is in the last."""
    bins = (np.asarray(confidence, np.float64) * CALIBRATION_BINS).astype(np.intp)
    return np.clip(bins, 0, CALIBRATION_BINS - 1)
