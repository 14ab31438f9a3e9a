"""How far the scores of an evaluation may be from those of other images of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.models.metrics import CALIBRATION_BINS, bin_confidences, class_codes, hits_top5

_LEVEL = 0.95
_MOST_DRAWN = 2e8
_FEWEST_SAMPLES = 200
_MOST_CELLS = 2500
_BLOCK = 1_000_000


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

    Notes
    -----
    The percentile bootstrap: Efron, Tibshirani: "An Introduction to the Bootstrap", 1993, chapter
    13. With few images it is too narrow.
    """
    truth, predicted = class_codes(classes, y), proba.argmax(axis=1)
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


def bootstrap_label_sets(
    truth: NDArray[np.intp],
    proba: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    *,
    threshold: float = 0.5,
    groups: NDArray[Any] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95 % intervals of the scores of `featx.models.metrics.score_label_sets`."""
    given, n, k = proba > threshold, *truth.shape
    drawing = {"groups": groups, "samples": samples, "seed": seed, "work": n * k}
    right, match = truth * given, (given == truth).all(axis=1)
    drawn: dict[str, list[Any]] = {"micro_f1": [], "exact_match": [], "f1": []}
    for weights in _draws(n, **drawing):
        positives, found, hits = weights @ truth, weights @ given, weights @ right
        decided = positives.sum() + found.sum()
        drawn["micro_f1"].append(2 * hits.sum() / decided if decided else 0.0)
        drawn["exact_match"].append(weights @ match / weights.sum())
        f1 = 2 * hits / np.maximum(positives + found, 1)
        drawn["f1"].append(np.where(positives > 0, f1, np.nan))
    width = max(1, _BLOCK // n)
    blocks = [slice(start, start + width) for start in range(0, k, width)]
    precision = np.concatenate(
        [_average_precisions(truth[:, b], proba[:, b], drawing) for b in blocks], axis=1
    )
    f1s = np.array(drawn["f1"])
    return {
        "mean_average_precision": _percentiles(_means(precision)).tolist(),
        "micro_f1": _percentiles(np.array(drawn["micro_f1"])).tolist(),
        "macro_f1": _percentiles(_means(f1s)).tolist(),
        "exact_match": _percentiles(np.array(drawn["exact_match"])).tolist(),
        "labels": [
            {
                "label": str(name),
                "average_precision": _of_label(precision[:, label]),
                "f1": _of_label(f1s[:, label]),
            }
            for label, name in enumerate(labels)
        ],
    }


def _average_precisions(
    truth: NDArray[np.intp], proba: NDArray[np.floating[Any]], drawing: dict[str, Any]
) -> NDArray[np.float64]:
    """Return the average precision of each label in each sample; NaN where no image has it."""
    n = len(truth)
    order = np.argsort(-proba, axis=0, kind="stable")
    ranked = np.take_along_axis(proba, order, axis=0)
    has = np.take_along_axis(truth, order, axis=0)
    # Images of one probability come in together: precision is that at the last of them.
    last = np.full(ranked.shape, n - 1)
    last[:-1] = np.where(ranked[1:] != ranked[:-1], np.arange(n - 1)[:, None], n - 1)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    rows = []
    for weights in _draws(n, **drawing):
        often = weights[order]
        hits = often * has
        precision = np.cumsum(hits, axis=0) / np.maximum(np.cumsum(often, axis=0), 1)
        total = hits.sum(axis=0)
        mean = (hits * np.take_along_axis(precision, last, axis=0)).sum(axis=0)
        rows.append(np.where(total > 0, mean / np.maximum(total, 1), np.nan))
    return np.array(rows)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the labels that each sample has; 0 where it has none."""
    there = ~np.isnan(values)
    sums = np.where(there, values, 0).sum(axis=1)
    means: NDArray[np.float64] = sums / np.maximum(there.sum(axis=1), 1)
    return means


def _of_label(values: NDArray[np.float64]) -> list[float] | None:
    there = values[~np.isnan(values)]
    found: list[float] | None = _percentiles(there).tolist() if there.size else None
    return found


def bootstrap_difference(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Return the 95 % interval of the difference of two accuracies on the same images."""
    difference = first.astype(float) - second.astype(float)
    drawn = [
        float(weights @ difference / weights.sum())
        for weights in _draws(len(difference), groups, samples, seed)
    ]
    found: list[float] = _percentiles(np.array(drawn)).tolist()
    return found


def _draws(
    n: int, groups: NDArray[Any] | None, samples: int, seed: int, work: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """Give out how often each image is drawn, shape (n,); less often where each is much work."""
    generator = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    for _ in range(min(samples, max(_FEWEST_SAMPLES, int(_MOST_DRAWN / (work or n))))):
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
