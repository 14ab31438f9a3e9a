"""Which images to label next: those that stand for many others, above all for doubtful ones."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from featx.heads.rows import Doubles, Floats, Numbers

_COMPONENTS = 64
_BLOCK_ROWS = 512
# On the sets of scripts/bench/labelling.py, powers of 1 and 3 saved fewer labels of Tiny ImageNet.
_POWER, _LEAST_WEIGHT = 6, 0.01


def choose_rows(
    X: Floats,
    count: int,
    *,
    labelled: Numbers | None = None,
    doubt: Doubles | None = None,
    seed: int = 0,
) -> Numbers:
    """Return which rows to label next, the most useful first.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Features of labelled and unlabelled images.
    count : int
        How many to choose; all that are unlabelled if there are no more.
    labelled : ndarray of int, optional
        Rows that have a label. They are never chosen, and what is like them is chosen last.
    doubt : ndarray of shape (n,), optional
        How unsure a model is of each row, from 0 to 1.
    seed : int, default 0
        The same seed gives the same rows.

    Returns
    -------
    rows : ndarray of shape (count,)

    Notes
    -----
    Greedy facility location: the next row is the one that raises most the sum, over all rows, of
    the similarity to the most similar row with a label (Wei, Iyer, Bilmes: "Submodularity in data
    subset selection and active learning", 2015). A model's doubt is the weight of a row in that
    sum. Gains only fall, so that few are computed again (Minoux: "Accelerated greedy algorithms for
    maximizing submodular set functions", 1978).

    Examples
    --------
    >>> X = np.array([[0, 1], [0, 1.1], [0.1, 1], [1, 0]], np.float32)
    >>> sorted(choose_rows(X, 2).tolist())[-1]
    3
    """
    taken = np.zeros(len(X), np.bool_)
    taken[[] if labelled is None else labelled] = True
    free = np.flatnonzero(~taken)
    count = min(count, len(free))
    if not count:
        return np.empty(0, np.intp)
    Z = _directions(X, seed)
    weights = np.ones(len(X), np.float32)
    if doubt is not None:
        weights = (doubt**_POWER + _LEAST_WEIGHT).astype(np.float32)
    covered = np.zeros(len(X), np.float32)
    for rows in _blocks(np.flatnonzero(taken)):
        np.maximum(covered, (Z @ Z[rows].T).max(axis=1), out=covered)
    gains = np.concatenate([_gains(Z, rows, covered, weights) for rows in _blocks(free)])
    queue = list(zip((-gains).tolist(), free.tolist(), strict=True))
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        _, row = heapq.heappop(queue)
        gain = float(_gains(Z, np.array([row]), covered, weights)[0])
        if queue and gain < -queue[0][0]:
            heapq.heappush(queue, (-gain, row))
            continue
        chosen.append(row)
        np.maximum(covered, Z @ Z[row], out=covered)
    return np.array(chosen, np.intp)


def _gains(
    Z: Floats, rows: Numbers, covered: NDArray[np.float32], weights: NDArray[np.float32]
) -> Floats:
    """Return by how much each of some rows would raise the weighted sum of similarities."""
    raised = Z @ Z[rows].T
    raised -= covered[:, None]
    np.maximum(raised, 0, out=raised)
    gains: Floats = weights @ raised
    return gains


def _blocks(rows: Numbers) -> list[Numbers]:
    return [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]


def _directions(X: Floats, seed: int) -> Floats:
    """Return rows as directions from their mean, of unit length, in at most 64 dimensions."""
    centred = _unit(X.astype(np.float32) - X.mean(axis=0, dtype=np.float64).astype(np.float32))
    components = min(_COMPONENTS, *X.shape)
    if components < X.shape[1]:
        pca = PCA(components, svd_solver="randomized", random_state=seed)
        centred = pca.fit_transform(centred)
    return _unit(centred)


def _unit(X: Floats) -> Floats:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    unit: Floats = X / np.where(lengths > 0, lengths, 1)
    return unit
