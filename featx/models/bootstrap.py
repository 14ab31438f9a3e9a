"""How far the scores of an evaluation may be from those of other images of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.models.metrics import CALIBRATION_BINS, bin_confidences, hits_top5

__all__ = ["bootstrap_difference", "bootstrap_intervals"]

_LEVEL = 0.95
_MOST_DRAWN = 2e8
_FEWEST_SAMPLES = 200
_MOST_CELLS = 2500


def bootstrap_intervals(
    y: NDArray[Any],
    proba: NDArray[np.floating[Any]],
    classes: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95 % intervals of the scores of `featx.models.metrics.score_predictions`.

    Parameters
    ----------
    y, proba, classes
        As there.
    groups : ndarray of shape (n,), optional
        Images that are drawn together, such as copies of one file; by default each by itself.
    samples : int, default 1000
        How often images are drawn, with replacement; fewer (at least 200) of 200,000 images or
        more.
    seed : int, default 0
        Seed of the drawing.

    Returns
    -------
    dict
        ``[low, high]`` by score. ``confusion`` is there for up to 50 classes: two matrices.

    Notes
    -----
    The percentile bootstrap: Efron, Tibshirani: "An Introduction to the Bootstrap", 1993, chapter
    13. With few images it is too narrow.
    """
    truth, predicted = np.searchsorted(classes, y), proba.argmax(axis=1)
    k = len(classes)
    right = (predicted == truth).astype(float)
    confidence = proba.max(axis=1)
    bins = bin_confidences(confidence)
    own = np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)
    means = np.column_stack([right, -np.log(own), hits_top5(truth, proba)])
    names = ("accuracy", "log_loss", "top5_accuracy")
    # Only cells that occur: of 1,000 classes there are as many as images, not a million.
    cells, cell = np.unique(truth * k + predicted, return_inverse=True)
    row, column = cells // k, cells % k
    drawn: dict[str, list[Any]] = {}
    for weights in _draws(len(truth), groups, samples, seed):
        total = weights.sum()
        for name, value in zip(names, weights @ means / total, strict=True):
            drawn.setdefault(name, []).append(value)
        gaps = np.bincount(bins, weights * (confidence - right), minlength=CALIBRATION_BINS)
        drawn.setdefault("calibration_error", []).append(np.abs(gaps).sum() / total)
        counts: NDArray[Any] = np.bincount(cell, weights, minlength=len(cells))
        balanced, f1 = _by_class(counts, row, column, k)
        drawn.setdefault("balanced_accuracy", []).append(balanced)
        drawn.setdefault("macro_f1", []).append(f1)
        if k * k <= _MOST_CELLS:
            drawn.setdefault("cells", []).append(counts)
    found: dict[str, Any] = {
        name: _percentiles(np.array(values)).tolist()
        for name, values in drawn.items()
        if name != "cells"
    }
    if "cells" in drawn:
        matrices = np.zeros((2, k, k))
        matrices[:, row, column] = _percentiles(np.array(drawn["cells"]))
        found["confusion"] = matrices.tolist()
    return found


def bootstrap_difference(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Return the 95 % interval of the difference of two accuracies on the same images.

    Parameters
    ----------
    first, second : ndarray of shape (n,), bool
        Whether each model is right.
    groups, samples, seed
        As in `bootstrap_intervals`.
    """
    difference = first.astype(float) - second.astype(float)
    drawn = [
        float(weights @ difference / weights.sum())
        for weights in _draws(len(difference), groups, samples, seed)
    ]
    found: list[float] = _percentiles(np.array(drawn)).tolist()
    return found


def _draws(
    n: int, groups: NDArray[Any] | None, samples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Give out how often each image is drawn, shape (n,)."""
    generator = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    for _ in range(min(samples, max(_FEWEST_SAMPLES, int(_MOST_DRAWN / n)))):
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        yield times[member].astype(np.float64)


def _by_class(
    counts: NDArray[Any], row: NDArray[np.intp], column: NDArray[np.intp], k: int
) -> tuple[float, float]:
    """Return balanced accuracy and macro F1 over the classes that have images."""
    truths = np.bincount(row, counts, minlength=k)
    guesses = np.bincount(column, counts, minlength=k)
    diagonal = row == column
    hits = np.bincount(row[diagonal], counts[diagonal], minlength=k)
    present = truths > 0
    recall = hits[present] / truths[present]
    f1 = 2 * hits[present] / (truths[present] + guesses[present])
    return float(recall.mean()), float(f1.mean())


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    tail = 50 * (1 - _LEVEL)
    found: NDArray[np.float64] = np.percentile(values, [tail, 100 - tail], axis=0)
    return found
