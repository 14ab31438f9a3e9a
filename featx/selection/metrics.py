"""How good predictions are: scores, what a search optimises, and 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import HeadError, UnknownNameError
from featx.files.safe_json import Json
from featx.heads.targets import LABEL_THRESHOLD

Codes: TypeAlias = NDArray[np.integer]
Truth: TypeAlias = NDArray[np.number]
Values: TypeAlias = NDArray[np.floating]
Doubles: TypeAlias = NDArray[np.float64]

MOST_CONFUSED = 256
"""Classes up to which training keeps a confusion matrix."""
CALIBRATION_BINS = 15
"""Bins of equal width over the highest probability, from 0 to 1."""


class Judged:
    """What decides the scores of images of one class each; their probabilities come in any order.

    Notes
    -----
    The calibration error is the expected one: the mean, over images, of the distance between the
    accuracy and the mean confidence of the image's bin, 15 bins of equal width (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, eq. 3).
    """

    def __init__(self, y: NDArray[np.generic], classes: NDArray[np.generic]) -> None:
        order = np.argsort(classes)
        self.truth = order[np.searchsorted(classes, y, sorter=order)]
        self.classes = classes
        self.predicted = np.zeros(len(y), np.intp)
        self.confidence = np.zeros(len(y))
        self._losses = np.zeros(len(y))
        self._top5 = np.zeros(len(y), np.bool_)

    def add(self, rows: Codes, proba: Values, predicted: Codes | None = None) -> None:
        """Take the probabilities (b, k) of some images; the most probable class is predicted."""
        truth = self.truth[rows]
        predicted = proba.argmax(axis=1) if predicted is None else predicted
        self.predicted[rows] = predicted
        self.confidence[rows] = proba[np.arange(len(proba)), predicted]
        self._losses[rows] = -np.log(_likelihoods(truth, proba))
        self._top5[rows] = _hits_top5(truth, proba)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the true one."""
        right: NDArray[np.bool_] = self.predicted == self.truth
        return right

    @property
    def likelihood(self) -> Doubles:
        """The probability of the true class of each image, at least 1e-15."""
        likelihood: Doubles = np.exp(-self._losses)
        return likelihood

    @cached_property
    def _bins(self) -> NDArray[np.intp]:
        bins = (self.confidence * CALIBRATION_BINS).astype(np.intp)
        return np.clip(bins, 0, CALIBRATION_BINS - 1)

    @cached_property
    def _cells(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Cells of the confusion matrix that occur, and the one of each image."""
        # Of 1,000 classes there are as many as images, not a million.
        pairs = self.truth * len(self.classes) + self.predicted
        cells, cell = np.unique(pairs, return_inverse=True)
        return cells, cell

    def weighted(self, weights: Doubles) -> tuple[dict[str, float], Doubles]:
        """Return the scores where images count so much, and what each cell that occurs counts."""
        k, total, (cells, cell) = len(self.classes), weights.sum(), self._cells
        counts = np.bincount(cell, weights, minlength=len(cells)).astype(np.float64)
        balanced, f1 = _by_class(counts, cells // k, cells % k, k)
        gaps = np.bincount(
            self._bins, weights * (self.confidence - self.right), minlength=CALIBRATION_BINS
        )
        scores = {
            "accuracy": weights @ self.right / total,
            "balanced_accuracy": balanced,
            "macro_f1": f1,
            "log_loss": weights @ self._losses / total,
            "top5_accuracy": weights @ self._top5 / total,
            "calibration_error": np.abs(gaps).sum() / total,
        }
        return {name: float(score) for name, score in scores.items()}, counts

    def scores(self, *, most_confused: int | None = None) -> Json:
        """Return the scores; no ``confusion`` of more classes than these."""
        images, k = len(self.truth), len(self.classes)
        scores, counts = self.weighted(np.ones(images))
        report: Json = {"images": images, **scores}
        if most_confused is None or k <= most_confused:
            report["confusion"] = self.matrix(counts).astype(int).tolist()
        return {**report, "classes": [str(name) for name in self.classes]}

    def matrix(self, counts: Doubles) -> Doubles:
        """Return what cells count, (..., cells), as confusion matrices, (..., k, k)."""
        k = len(self.classes)
        matrix = np.zeros((*counts.shape[:-1], k * k))
        matrix[..., self._cells[0]] = counts
        return matrix.reshape(*counts.shape[:-1], k, k)


def score_predictions(y: NDArray[np.generic], proba: Values, classes: NDArray[np.generic]) -> Json:
    """Return the scores of predicted probabilities (n, k)."""
    return _judged(y, proba, classes).scores()


def _judged(y: NDArray[np.generic], proba: Values, classes: NDArray[np.generic]) -> Judged:
    judged = Judged(y, classes)
    judged.add(np.arange(len(y)), proba)
    return judged


def score_label_sets(
    truth: Codes,
    proba: Values,
    labels: NDArray[np.generic],
    *,
    predicted: NDArray[np.bool_] | None = None,
) -> Json:
    """Return the scores of probabilities where an image has any number of labels.

    Those above 0.5 are `predicted` by default.
    """
    predicted = proba > LABEL_THRESHOLD if predicted is None else predicted
    positives, chosen = truth.sum(axis=0, dtype=np.intp), predicted.sum(axis=0)
    hits = (truth * predicted).sum(axis=0, dtype=np.intp)
    micro, f1 = _f1_scores(positives, chosen, hits)
    precision = _average_precision(truth, proba)
    return {
        "images": len(truth),
        "mean_average_precision": float(np.mean(list(precision.values()))) if precision else 0.0,
        "micro_f1": micro,
        "macro_f1": float(_means(f1[None])[0]),
        "exact_match": float((predicted == truth).all(axis=1).mean()),
        "labels": [
            {
                "label": str(name),
                "images": int(positive),
                "average_precision": precision.get(label),
                "f1": float(f1[label]) if positive else None,
                "confusion": [
                    [int(len(truth) - positive - guessed + hit), int(guessed - hit)],
                    [int(positive - hit), int(hit)],
                ],
            }
            for label, (name, positive, guessed, hit) in enumerate(
                zip(labels, positives, chosen, hits, strict=True)
            )
        ],
    }


def _f1_scores(
    positives: NDArray[np.number], chosen: NDArray[np.number], hits: NDArray[np.number]
) -> tuple[float, Doubles]:
    """Return micro F1, and the F1 of each label; NaN where no image has it."""
    decided = positives.sum() + chosen.sum()
    f1 = np.where(positives > 0, 2 * hits / np.maximum(positives + chosen, 1), np.nan)
    return float(2 * hits.sum() / decided) if decided else 0.0, f1


def _likelihoods(truth: Codes, proba: Values) -> Values:
    return np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)


def _hits_top5(truth: Codes, proba: Values) -> NDArray[np.bool_]:
    """Return whether fewer than 5 classes come before the true one, shape (n,)."""
    likelihood = proba[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(proba.shape[1]) < truth[:, None]
    before = (proba > likelihood) | ((proba == likelihood) & earlier)
    hits: NDArray[np.bool_] = before.sum(axis=1) < 5
    return hits


def _by_class(counts: Doubles, row: Codes, column: Codes, k: int) -> tuple[float, float]:
    """Return balanced accuracy and macro F1 over the classes that have images."""
    truths = np.bincount(row, counts, minlength=k)
    guesses = np.bincount(column, counts, minlength=k)
    hits = np.bincount(row, counts * (row == column), minlength=k)
    present = truths > 0
    recall = hits[present] / truths[present]
    f1 = 2 * hits[present] / (truths[present] + guesses[present])
    return float(recall.mean()), float(f1.mean())


_ROUNDING = 1e-6
_DRAWS_OF_LABELS = 200


def _accuracy(truth: Codes, values: Values) -> float:
    return float((values.argmax(axis=1) == truth).mean())


def _balanced_accuracy(truth: Codes, values: Values) -> float:
    return _by_class(np.ones(len(truth)), truth, values.argmax(axis=1), values.shape[1])[0]


def _macro_f1(truth: Codes, values: Values) -> float:
    return _by_class(np.ones(len(truth)), truth, values.argmax(axis=1), values.shape[1])[1]


def _negative_log_loss(truth: Codes, values: Values) -> float:
    return float(np.log(_likelihoods(truth, values)).mean())


def _top5(truth: Codes, values: Values) -> float:
    return float(_hits_top5(truth, values).mean())


def _mean_average_precision(truth: Codes, values: Values) -> float:
    precision = _average_precision(truth, values)
    return float(np.mean(list(precision.values()))) if precision else 0.0


def _average_precision(truth: Codes, values: Values) -> dict[int, float]:
    """Return the average precision of each label that some image has."""
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero(truth.any(axis=0)).tolist()
    return {n: float(average_precision_score(truth[:, n], values[:, n])) for n in present}


def _micro_f1(truth: Codes, values: Values) -> float:
    chosen = values > LABEL_THRESHOLD
    return _f1_scores(truth.sum(axis=0), chosen.sum(axis=0), (truth * chosen).sum(axis=0))[0]


def value_scores(truth: Truth, predicted: Values, weights: Doubles | None = None) -> Doubles:
    """Return R², mean absolute error and root mean squared error of each column, (3, k).

    Notes
    -----
    R² is 1 - sum of squared errors / sum of squared differences from the mean; of numbers that do
    not differ it is 1 where all predictions are right and 0 otherwise, as in scikit-learn.
    """
    counted = np.ones(len(truth)) if weights is None else weights
    total, error = counted.sum(), truth - predicted
    squared = counted @ error**2
    mean = counted @ truth / total
    spread = counted @ (truth - mean) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - squared / spread, np.where(squared > 0, 0.0, 1.0))
    return np.stack([r2, counted @ np.abs(error) / total, np.sqrt(squared / total)])


def _r2(truth: Truth, values: Values) -> float:
    return float(value_scores(truth, values)[0].mean())


def _mae(truth: Truth, values: Values) -> float:
    return -float(value_scores(truth, values)[1].mean())


def _rmse(truth: Truth, values: Values) -> float:
    return -float(value_scores(truth, values)[2].mean())


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way of scoring by true codes (n,), or labels or numbers (n, k), and values (n, k)."""

    name: str
    function: Callable[[Any, Values], float]  # more is better
    # Of the values: the best class only, "order", "probabilities", or "values" of a regression.
    needs: str = "labels"
    sign: int = 1  # what it is multiplied by where it is shown
    multilabel: bool = False
    least: float = 0.0  # the lowest that there can be, of scores that are no losses
    regression: bool = False  # by true and predicted numbers (n, k)

    def shown(self, score: float) -> float:
        """Return a score as it is shown to people."""
        return self.sign * score

    def allows(self, score: float) -> bool:
        """Return whether it is a score that there can be: at most 1, or a negative loss."""
        lowest, highest = (-np.inf, 0.0) if self.sign < 0 else (self.least, 1.0)
        return lowest - _ROUNDING <= score <= highest + _ROUNDING


_ROWS = (
    Scorer("accuracy", _accuracy),
    Scorer("balanced_accuracy", _balanced_accuracy),
    Scorer("macro_f1", _macro_f1),
    Scorer("log_loss", _negative_log_loss, "probabilities", -1),
    Scorer("top5", _top5, "order"),
    Scorer("mean_average_precision", _mean_average_precision, "probabilities", multilabel=True),
    Scorer("micro_f1", _micro_f1, "probabilities", multilabel=True),
    Scorer("r2", _r2, "values", least=-np.inf, regression=True),
    Scorer("mae", _mae, "values", -1, regression=True),
    Scorer("rmse", _rmse, "values", -1, regression=True),
)
SCORERS: Mapping[str, Scorer] = MappingProxyType({scorer.name: scorer for scorer in _ROWS})
"""Every way of scoring by its name."""


def find_scorer(
    name: str, classes: int, *, multilabel: bool = False, regression: bool = False
) -> Scorer:
    """Return a way of scoring."""
    if name not in SCORERS:
        raise UnknownNameError("scoring", str(name), SCORERS)
    kind = (multilabel, regression)
    if (SCORERS[name].multilabel, SCORERS[name].regression) != kind:
        fitting = [row.name for row in _ROWS if (row.multilabel, row.regression) == kind]
        what = "several labels" if multilabel else "numbers of" if regression else "one class"
        raise HeadError(
            f"{name!r} is no score of {what} an image: take one of {', '.join(fitting)}"
        )
    if name == "top5" and classes <= 5:
        raise HeadError(
            f"top5 needs more than 5 classes, received {classes}: every prediction would count as "
            "right; take scoring='accuracy'"
        )
    return SCORERS[name]


def score_interval(
    scorer: Scorer, truth: Truth, values: Values, *, seed: int = 0, draws: int = 1000
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
    low, high = middle_95(scores)
    return low, high


_MOST_DRAWN = 2e8
_FEWEST_SAMPLES = 200
_MOST_CELLS = 2500
_BLOCK = 1_000_000


def bootstrap_intervals(
    y: NDArray[np.generic],
    proba: Values,
    classes: NDArray[np.generic],
    *,
    groups: Codes | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Json:
    """Return 95 % intervals of the scores of `score_predictions`.

    Notes
    -----
    The percentile bootstrap: Efron, Tibshirani: "An Introduction to the Bootstrap", 1993, chapter
    13. With few images it is too narrow.
    """
    judged = _judged(y, proba, classes)
    return bootstrap_intervals_of(judged, groups=groups, samples=samples, seed=seed)


def bootstrap_intervals_of(
    judged: Judged, *, groups: Codes | None = None, samples: int = 1000, seed: int = 0
) -> Json:
    """Return the intervals of `bootstrap_intervals` of images that are judged already."""
    drawn, cells = [], []
    for weights in drawn_weights(len(judged.truth), groups, samples, seed):
        scores, counts = judged.weighted(weights)
        drawn.append(scores)
        if len(judged.classes) ** 2 <= _MOST_CELLS:
            cells.append(counts)
    intervals: Json = {name: middle_95([scores[name] for scores in drawn]) for name in drawn[0]}
    if cells:
        intervals["confusion"] = judged.matrix(np.percentile(cells, [2.5, 97.5], axis=0)).tolist()
    return intervals


def bootstrap_label_sets(
    truth: Codes,
    proba: Values,
    labels: NDArray[np.generic],
    *,
    predicted: NDArray[np.bool_] | None = None,
    groups: Codes | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Json:
    """Return 95 % intervals of the scores of `score_label_sets`."""
    predicted = proba > LABEL_THRESHOLD if predicted is None else predicted
    n, k = truth.shape
    right, match = truth * predicted, (predicted == truth).all(axis=1)
    drawing = {"groups": groups, "samples": samples, "seed": seed, "work": n * k}
    micro, exact, f1 = [], [], []
    for weights in drawn_weights(n, **drawing):
        scores = _f1_scores(weights @ truth, weights @ predicted, weights @ right)
        micro.append(scores[0])
        f1.append(scores[1])
        exact.append(float(weights @ match / weights.sum()))
    width = max(1, _BLOCK // n)
    blocks = [slice(start, start + width) for start in range(0, k, width)]
    precision = np.concatenate(
        [_average_precisions(truth[:, b], proba[:, b], drawing) for b in blocks], axis=1
    )
    f1s = np.array(f1)
    return {
        "mean_average_precision": middle_95(_means(precision)),
        "micro_f1": middle_95(micro),
        "macro_f1": middle_95(_means(f1s)),
        "exact_match": middle_95(exact),
        "labels": [
            {
                "label": str(name),
                "average_precision": _interval_of_label(precision[:, label]),
                "f1": _interval_of_label(f1s[:, label]),
            }
            for label, name in enumerate(labels)
        ],
    }


def _average_precisions(truth: Codes, proba: Values, drawing: Mapping[str, Any]) -> Doubles:
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
    for weights in drawn_weights(n, **drawing):
        often = weights[order]
        hits = often * has
        precision = np.cumsum(hits, axis=0) / np.maximum(np.cumsum(often, axis=0), 1)
        total = hits.sum(axis=0)
        mean = (hits * np.take_along_axis(precision, last, axis=0)).sum(axis=0)
        rows.append(np.where(total > 0, mean / np.maximum(total, 1), np.nan))
    return np.array(rows)


def _means(values: Doubles) -> Doubles:
    """Return the mean over the labels that each sample has; 0 where it has none."""
    there = ~np.isnan(values)
    means: Doubles = np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return means


def _interval_of_label(values: Doubles) -> list[float] | None:
    there = values[~np.isnan(values)]
    return middle_95(there) if there.size else None


def bootstrap_difference(
    first: NDArray[np.bool_] | Values,
    second: NDArray[np.bool_] | Values,
    *,
    groups: Codes | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Return the 95 % interval of the difference of two means over the same images."""
    difference = first.astype(float) - second.astype(float)
    draws = drawn_weights(len(difference), groups, samples, seed)
    return middle_95([float(weights @ difference / weights.sum()) for weights in draws])


def drawn_weights(
    n: int, groups: Codes | None, samples: int, seed: int, work: int | None = None
) -> Iterator[Doubles]:
    """Give out how often each image is drawn, shape (n,); less often where each is much work."""
    generator = np.random.default_rng(seed)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    for _ in range(min(samples, max(_FEWEST_SAMPLES, int(_MOST_DRAWN / (work or n))))):
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        yield times[member].astype(np.float64)


def middle_95(values: Sequence[float] | Doubles) -> list[float]:
    """Return the limits of the middle 95 % of some values."""
    limits: list[float] = np.percentile(values, [2.5, 97.5]).tolist()
    return limits
