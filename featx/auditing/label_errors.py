"""Labels that the other images contradict: probabilities of heads that have not seen an image.

featx has its own few lines of confident learning, as they need nothing but the probabilities:
their ranking and their choice are those of cleanlab 2 (a test compares them where it is installed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.cache.features import Features
from featx.files.identity import related_rows
from featx.heads.making import make_head
from featx.models.training import BlockName, Fitting
from featx.selection.splits import repeated_folds

Numbers: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.floating[Any]]

_FOLDS = 5
# Up to here logistic regression; beyond, a head whose folds are sums, solved at once.
_MOST_CELLS = 40_000_000
_CELLS = 4_000_000
_NEARLY = 2.220446049250313e-15  # ten roundings, as in cleanlab
_HEAD, _QUICK_HEAD = "logistic", "lda"


def head_for(rows: int, width: int, classes: int) -> str:
    """Return the head whose probabilities judge labels: the best that takes minutes."""
    return _HEAD if rows * min(classes, 20) * width <= 20 * _MOST_CELLS else _QUICK_HEAD


def held_out_probabilities(
    features: Features,
    block: BlockName,
    rows: Numbers,
    *,
    together: NDArray[np.int64] | None = None,
    max_ram_bytes: int | None = None,
    seed: int = 0,
) -> Values:
    """Return what heads say of rows that they have not seen, shape (n, classes).

    The folds are those of `featx.train`. Rows that are `together` are on one side too: nearly equal
    images would confirm each other's wrong labels.

    Raises
    ------
    DatasetError
        If a class has one image only, or there are fewer than two classes.
    """
    codes = features.labels[rows]
    name = head_for(len(rows), features.width(**block), int(codes.max()) + 1)
    fitting = Fitting(features, block, make_head(name, seed=seed), features.labels, max_ram_bytes)
    groups = related_rows(features.keys, features.groups)
    groups = groups[rows] if together is None else together
    folds = repeated_folds(codes, folds=_FOLDS, groups=groups, seed=seed)
    present = np.unique(codes)
    shape = len(rows), int(codes.max()) + 1
    proba = np.zeros(shape, np.float32 if np.prod(shape) <= _MOST_CELLS else np.float16)
    for values, numbers in fitting.held_out(rows, folds, 0, name=name, seed=seed):
        proba[numbers[:, None], present] = values
    return proba


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """What probabilities say of labels, a value a row.

    Parameters
    ----------
    quality : ndarray of shape (n,)
        Probability of the label: the lower, the more doubtful.
    better : ndarray of shape (n,)
        The code of the class that is more probable than those of it usually are.
    wrong : ndarray of bool, shape (n,)
        Whether this is another class than the label.
    """

    quality: Values
    better: Numbers
    wrong: NDArray[np.bool_]


def doubt_labels(codes: NDArray[np.integer[Any]], proba: Values) -> LabelDoubts:
    """Return how doubtful labels are, by their codes (n,) and probabilities (n, k).

    Notes
    -----
    Confident learning (Northcutt et al., 2021): an image counts for a class where its probability
    is at least the mean of those that have the label; of several, for the most probable. Ranked
    by the probability of the label, which cleanlab calls self-confidence. The choice is that of
    cleanlab's ``find_label_issues(filter_by="confident_learning")``.
    """
    rows = np.arange(len(codes))
    quality = proba[rows, codes].astype(np.float64)
    k = proba.shape[1]
    counts = np.bincount(codes, minlength=k)
    thresholds = np.bincount(codes, quality, minlength=k) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    better = np.array(codes, np.intp)
    step = max(1, _CELLS // max(1, k))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        confident = proba[part] >= thresholds - 1e-6
        number = confident.sum(axis=1)
        choice = np.where(number > 1, proba[part].argmax(axis=1), confident.argmax(axis=1))
        better[part] = np.where(number > 0, choice, better[part])
    # As in cleanlab, a label that is the most probable class, or nearly so, is not wrong.
    wrong = (better != codes) & (proba.max(axis=1) - quality > _NEARLY)
    return LabelDoubts(quality, better, wrong)
