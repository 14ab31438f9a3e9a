"""What a head costs: milliseconds an image, and bytes of what it has learnt."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.table import HEADS
from featx.selection.fold_data import FoldData
from featx.selection.space import Candidate
from featx.selection.transforms import Prepared, parse_transform

_BATCH = 256
_REPEATS = 3
_OF_EACH_CLASS = (4, 8)


def training_cost(head: str) -> int:
    """Return which heads are to be tried first: 0 measured together, 1 one by one, 2 by Keras."""
    row = HEADS.get(head)
    if row is not None and row.sweep:
        return 0
    return 2 if row is not None and row.needs_keras else 1


def prediction_cost(head: str) -> int:
    """Return the order of what predictions cost, as the table of heads states it."""
    return HEADS[head].cost if head in HEADS else 9


def milliseconds(prepared: Prepared, head: Any, X: NDArray[Any]) -> float:
    """Return the least of three timings of transform and prediction, an image of a batch of 256."""
    batch = X[:_BATCH]
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        head.predict(prepared.apply(batch))
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1000 / len(batch)


def learnt_bytes(*parts: Any) -> int:
    """Return the bytes of all arrays that fitted objects hold, each array once."""
    seen: dict[int, Any] = {}  # with the objects themselves: an identity is used again after them
    total, waiting = 0, list(parts)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or item is None or isinstance(item, str | bytes | int | float | type):
            continue
        seen[id(item)] = item
        if isinstance(item, np.ndarray):
            total += item.nbytes
            waiting += item.ravel().tolist() if item.dtype == object else []
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item
        else:
            # Compiled objects, such as the trees of a forest, show their arrays here only.
            state: Any = getattr(item, "__getstate__", dict)()
            waiting += [state] if isinstance(state, dict | tuple) else []
    return total


def probe(candidate: Candidate, data: FoldData, *, seed: int) -> tuple[float, int]:
    """Measure what a head would cost, from a fit on a few rows where that is enough."""
    prepared = data.prepare(parse_transform(candidate.transform), 0)
    train, test = data.folds[0]
    several = data.sets is not None
    learnt: list[int] = []
    given: list[int] = []
    for count in _OF_EACH_CLASS:
        rows = _few(train, data.codes, count)
        Z = prepared.apply(data.X[rows])
        head = prepared.head(candidate.make(seed=seed, multilabel=several))
        head.fit(Z, data.targets(rows))
        learnt.append(learnt_bytes(head))
        given.append(Z.nbytes)
    if 2 * (learnt[1] - learnt[0]) >= given[1] - given[0] > 0:  # it keeps what it is given
        head = prepared.head(candidate.make(seed=seed, multilabel=several))
        head.fit(prepared.apply(data.X[train]), data.targets(train))
    return milliseconds(prepared, head, data.X[test]), learnt_bytes(head, prepared.learnt())


def _few(rows: NDArray[np.intp], codes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    classes = range(int(codes[rows].max()) + 1)
    return np.concatenate([rows[codes[rows] == code][:count] for code in classes])
