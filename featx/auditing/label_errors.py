"""Labels that the other images contradict: probabilities of heads that have not seen an image.

featx has its own few lines of confident learning, as they need nothing but the probabilities:
their ranking and their choice are those of cleanlab 2 (a test compares them where it is installed).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from featx.cache.features import Features
from featx.exceptions import HeadError
from featx.files.identity import content_groups
from featx.heads.calibrated import fit_temperature
from featx.heads.discriminant import weights_of_sums
from featx.heads.making import make_head
from featx.heads.moments import Moments
from featx.heads.targets import Targets
from featx.memory import shown_bytes
from featx.models.fitting import Fitting, block_bytes
from featx.selection.splits import dealt_folds, repeated_folds
from featx.spec import BlockName

Numbers: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.floating[Any]]
Passes: TypeAlias = Callable[[], Iterator[tuple[Values, Numbers]]]
"""A pass over probabilities: batches (b, k), with the numbers (b,) of the rows they are of."""

_FOLDS = 5
_MOST_CELLS = 200_000_000  # rows, features and classes (of which 20 count) of logistic regression
_BATCH_ROWS, _MOST_ROWS = 1024, 8192
_SHRINKAGES = np.array([0.01, 0.1, 0.5])
_CALIBRATED_ON = 20_000
_NEARLY = 2.220446049250313e-15  # ten roundings, as in cleanlab


def held_out_probabilities(
    features: Features,
    block: BlockName,
    rows: Numbers,
    *,
    together: NDArray[np.int64] | None = None,
    max_ram_bytes: int = 1 << 30,
    seed: int = 0,
) -> Passes:
    """Return what heads say of rows that they have not seen, of every class up to the last code.

    By logistic regression, with the folds of `featx.train`, where that takes minutes at most and
    the features fit a quarter of the memory; else by linear discriminants. Rows that are `together`
    are on one side: nearly equal images would confirm each other's wrong labels.

    Raises
    ------
    DatasetError
        If a class has one image only, or there are fewer than two classes.
    HeadError
        If linear discriminants of so many features do not fit the memory.
    """
    codes = features.labels[rows]
    groups = content_groups(features.keys, features.groups)
    groups = groups[rows] if together is None else together
    cells = len(rows) * min(int(codes.max()) + 1, 20) * features.width(**block)
    if cells > _MOST_CELLS or block_bytes(features, block) > max_ram_bytes // 4:
        fold_of = dealt_folds(codes, groups, _FOLDS, seed, exact=True)
        return _by_discriminants(features, block, rows, fold_of, max_ram_bytes, seed)
    folds = repeated_folds(codes, folds=_FOLDS, groups=groups, seed=seed)
    fitting = Fitting(features, block, make_head("logistic", seed=seed), features.labels)
    proba = np.zeros((len(rows), int(codes.max()) + 1), np.float32)
    present = np.unique(codes)
    for values, numbers in fitting.held_out(rows, folds, 0, name="logistic", seed=seed):
        proba[numbers[:, None], present] = values

    def batches() -> Iterator[tuple[Values, Numbers]]:
        for start in range(0, len(rows), _BATCH_ROWS):
            numbers = np.arange(start, min(start + _BATCH_ROWS, len(rows)))
            yield proba[numbers], numbers

    return batches


def _by_discriminants(
    features: Features,
    block: BlockName,
    rows: Numbers,
    fold_of: Numbers,
    max_ram_bytes: int,
    seed: int,
) -> Passes:
    """Return what linear discriminants say, all of which come from one pass over the features.

    Shrinkage and temperature are those that explain the held-out labels of a sample best.
    """
    codes, width = features.labels[rows].astype(np.intp), features.width(**block)
    targets = Targets("classes", np.arange(int(codes.max()) + 1), codes)
    # Sums of products of each fold and of a few more in between; weights and sums of each class.
    needed = 8 * width * ((_FOLDS + 6) * (width + targets.columns))
    if needed > max_ram_bytes // 2:
        raise HeadError(
            f"sums of products of {width:,} features and {targets.columns:,} classes take "
            f"{shown_bytes(needed)}, more than half of --max-ram: raise it, or take a tap with "
            "fewer features, such as avg"
        )

    def batches(numbers: Numbers, size: int) -> Iterator[tuple[Values, Numbers]]:
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            yield features.take(rows[some], **block).astype(np.float32, copy=False), some

    size = int(np.clip(max_ram_bytes // 16 // (4 * width), 16, _MOST_ROWS))
    every = np.arange(len(rows))
    parts = Moments.of_groups(batches(every, size), targets, fold_of, gram=True)
    total = reduce(operator.add, parts)
    heads = [list(weights_of_sums(total - part, _SHRINKAGES)) for part in parts]
    del parts, total

    def margins(X: Values, numbers: Numbers, which: int) -> Values:
        values = np.empty((len(X), targets.columns), np.float32)
        for fold, shrinkages in enumerate(heads):
            inside = np.flatnonzero(fold_of[numbers] == fold)
            weights, constants = shrinkages[which]
            values[inside] = X[inside] @ weights + constants
        return values

    count = min(_CALIBRATED_ON, max(1, max_ram_bytes // 16 // (4 * targets.columns)), len(rows))
    sample = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    losses, temperatures = [], []
    for which in range(len(_SHRINKAGES)):
        judged = np.concatenate([margins(*batch, which) for batch in batches(sample, size)])
        temperature = fit_temperature(judged, codes[sample])
        logs = log_softmax(judged / temperature, axis=1)
        losses.append(-float(logs[np.arange(count), codes[sample]].mean(dtype=np.float64)))
        temperatures.append(temperature)
    best = int(np.argmin(losses))

    def passes() -> Iterator[tuple[Values, Numbers]]:
        for X, numbers in batches(every, _BATCH_ROWS):
            yield softmax(margins(X, numbers, best) / temperatures[best], axis=1), numbers

    return passes


def mean_probabilities(parts: Sequence[Passes]) -> Passes:
    """Return the mean of what several heads say of the same rows."""

    def passes() -> Iterator[tuple[Values, Numbers]]:
        for batches in zip(*(part() for part in parts), strict=True):
            yield np.mean([proba for proba, _ in batches], axis=0), batches[0][1]

    return parts[0] if len(parts) == 1 else passes


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """What probabilities say of labels, a value a row.

    Parameters
    ----------
    quality : ndarray of shape (n,)
        Probability of the label: the lower, the more doubtful.
    predicted : ndarray of shape (n,)
        The code of the most probable class.
    better : ndarray of shape (n,)
        The code of the class that is more probable than those of it usually are.
    better_probability : ndarray of shape (n,)
        How probable that is.
    wrong : ndarray of bool, shape (n,)
        Whether this is another class than the label.
    """

    quality: Values
    predicted: Numbers
    better: Numbers
    better_probability: Values
    wrong: NDArray[np.bool_]


def doubt_labels(labels: NDArray[np.integer[Any]], passes: Passes) -> LabelDoubts:
    """Return how doubtful labels are, by their codes (n,) and two passes over probabilities.

    Notes
    -----
    Confident learning (Northcutt et al., 2021): an image counts for a class where its probability
    is at least the mean of those that have the label; of several, for the most probable. Ranked
    by the probability of the label, which cleanlab calls self-confidence. The choice is that of
    cleanlab's ``find_label_issues(filter_by="confident_learning")``.
    """
    codes: Numbers = labels.astype(np.intp)
    quality, highest = np.zeros((2, len(codes)))
    predicted: Numbers = codes.copy()
    columns = 1
    for proba, numbers in passes():
        columns = proba.shape[1]
        quality[numbers] = proba[np.arange(len(numbers)), codes[numbers]]
        predicted[numbers], highest[numbers] = proba.argmax(axis=1), proba.max(axis=1)
    counts = np.bincount(codes, minlength=columns)
    thresholds = np.bincount(codes, quality, minlength=columns) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    better: Numbers = codes.copy()
    better_probability = quality.copy()
    for proba, numbers in passes():
        confident = proba >= thresholds - 1e-6
        number = confident.sum(axis=1)
        choice = np.where(number > 1, predicted[numbers], confident.argmax(axis=1))
        better[numbers] = np.where(number > 0, choice, codes[numbers])
        better_probability[numbers] = proba[np.arange(len(numbers)), better[numbers]]
    # As in cleanlab, a label that is the most probable class, or nearly so, is not wrong.
    wrong = (better != codes) & (highest - quality > _NEARLY)
    return LabelDoubts(quality, predicted, better, better_probability, wrong)
