"""How good predictions are: scores, what a search optimises, and 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, UnknownNameError

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
        balanced, f1 = _by_class(self._counts, truth, predicted, k)
        scores: dict[str, Any] = {
            "images": images,
            "accuracy": float(self._counts[truth == predicted].sum() / images),
            "balanced_accuracy": balanced,
            "macro_f1": f1,
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
    given = proba > threshold
    positives, found = truth.sum(axis=0, dtype=np.intp), given.sum(axis=0)
    right = (truth * given).sum(axis=0, dtype=np.intp)
    present = np.flatnonzero(positives)
    f1 = 2 * right / np.maximum(positives + found, 1)
    precision = _average_precision(truth, proba)
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


_ROUNDING = 1e-6
_DRAWS_OF_LABELS = 200

Codes: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.floating[Any]]


def _accuracy(truth: Codes, values: Values) -> float:
    return float((values.argmax(axis=1) == truth).mean())


def _balanced_accuracy(truth: Codes, values: Values) -> float:
    return _by_class(np.ones(len(truth)), truth, values.argmax(axis=1), values.shape[1])[0]


def _macro_f1(truth: Codes, values: Values) -> float:
    return _by_class(np.ones(len(truth)), truth, values.argmax(axis=1), values.shape[1])[1]


def _negative_log_loss(truth: Codes, values: Values) -> float:
    chosen = np.clip(values[np.arange(len(truth)), truth], 1e-15, 1.0)
    return float(np.log(chosen).mean())


def _top5(truth: Codes, values: Values) -> float:
    return float(hits_top5(truth, values).mean())


def _mean_average_precision(truth: Codes, values: Values) -> float:
    precision = _average_precision(truth, values)
    return float(np.mean(list(precision.values()))) if precision else 0.0


def _average_precision(truth: NDArray[np.integer[Any]], values: Values) -> dict[int, float]:
    """Return the average precision of each label that some image has."""
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero(truth.any(axis=0)).tolist()
    return {n: float(average_precision_score(truth[:, n], values[:, n])) for n in present}


def _micro_f1(truth: Codes, values: Values) -> float:
    given = values > 0.5
    decided = int(truth.sum() + given.sum())
    return float(2 * (truth * given).sum() / decided) if decided else 0.0


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way of scoring, as data.

    Parameters
    ----------
    name : str
        What a user types.
    function : callable
        Takes true codes (n,), or labels (n, k) of 0 and 1, and values (n, k), and returns a number
        of which more is better.
    needs : {"labels", "order", "probabilities"}
        What the values have to be: the best class only, the order of all, or probabilities.
    sign : {1, -1}, default 1
        What `function` is multiplied by where it is shown.
    multilabel : bool, default False
        Whether it is of several labels an image.
    """

    name: str
    function: Callable[[Codes, Values], float]
    needs: str = "labels"
    sign: int = 1
    multilabel: bool = False

    def shown(self, score: float) -> float:
        """Return a score as it is shown to people."""
        return self.sign * score

    def allows(self, score: float) -> bool:
        """Return whether it is a score that there can be: a share, or a negative loss."""
        lowest, highest = (-np.inf, 0.0) if self.sign < 0 else (0.0, 1.0)
        return lowest - _ROUNDING <= score <= highest + _ROUNDING


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            Scorer("accuracy", _accuracy),
            Scorer("balanced_accuracy", _balanced_accuracy),
            Scorer("macro_f1", _macro_f1),
            Scorer("log_loss", _negative_log_loss, "probabilities", -1),
            Scorer("top5", _top5, "order"),
            Scorer(
                "mean_average_precision", _mean_average_precision, "probabilities", multilabel=True
            ),
            Scorer("micro_f1", _micro_f1, "probabilities", multilabel=True),
        )
    }
)
"""Every way of scoring by its name."""


def find_scorer(name: str, classes: int, *, multilabel: bool = False) -> Scorer:
    """Return a way of scoring."""
    if name not in SCORERS:
        raise UnknownNameError("scoring", str(name), SCORERS)
    if SCORERS[name].multilabel != multilabel:
        fit = [one.name for one in SCORERS.values() if one.multilabel == multilabel]
        raise HeadError(
            f"{name!r} is no score of {'several labels' if multilabel else 'one class'} an image: "
            f"take one of {', '.join(fit)}"
        )
    if name == "top5" and classes <= 5:
        raise HeadError(
            f"top5 needs more than 5 classes, received {classes}: every prediction would count as "
            "right; take scoring='accuracy'"
        )
    return SCORERS[name]


def score_interval(
    scorer: Scorer, truth: Codes, values: Values, *, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """Return the 95 % interval of a score as it is shown."""
    n = len(truth)
    if scorer.name in ("accuracy", "top5"):
        share, z = scorer.function(truth, values), 1.959964
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, float(centre - half)), min(1.0, float(centre + half))
    draws = min(draws, _DRAWS_OF_LABELS) if scorer.multilabel else draws
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, n, n) for _ in range(draws))
    scores = [scorer.shown(scorer.function(truth[rows], values[rows])) for rows in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


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
