"""Parts of rows that have any number of labels, each label in each part by its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_strata(
    labels: NDArray[Any],
    shares: Sequence[float],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: Any = 0,
) -> NDArray[np.intp]:
    """Give every row a part, so that each part has its share of the rows and of every label.

    Notes
    -----
    Iterative stratification: the label with the fewest rows left goes first, each of its rows to
    the part that lacks it most, among equals to the part that lacks rows most. Sechidis,
    Tsoumakas, Vlahavas: "On the Stratification of Multi-Label Data", ECML PKDD 2011. A group is
    taken as a row with counts of labels, those with most of the label first.
    """
    from scipy.sparse import coo_array, csr_array

    generator = np.random.default_rng(seed)
    rows = len(labels)
    own = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(own.max()) + 1 if rows else 0
    own = generator.permutation(units)[own]
    sizes = np.bincount(own, minlength=units)
    where = (own, np.arange(rows))
    joined = coo_array((np.ones(rows, np.int64), where), shape=(units, rows)).tocsr()
    counts = (joined @ csr_array(labels.astype(np.int64))).tocsr()
    columns = counts.tocsc()
    total = np.asarray(counts.sum(axis=0)).ravel()
    left, placed = total.copy(), np.zeros((len(shares), len(total)))
    room = [share * rows for share in shares]
    parts = np.full(units, -1)

    def place(some: NDArray[np.intp], lacking: list[float], weights: NDArray[Any]) -> None:
        chance = generator.random(len(shares)).tolist()
        found = []
        for weight, size in zip(weights.tolist(), sizes[some].tolist(), strict=True):
            part = max(range(len(room)), key=lambda p: (lacking[p], room[p], chance[p]))
            lacking[part] -= weight
            room[part] -= size
            found.append(part)
        parts[some] = found

    while (rest := np.flatnonzero(left)).size:
        label = rest[left[rest].argmin()]
        column = slice(columns.indptr[label], columns.indptr[label + 1])
        some, weights = columns.indices[column], columns.data[column]
        free = np.flatnonzero(parts[some] < 0)
        free = free[np.argsort(-weights[free], kind="stable")]
        some, weights = some[free].astype(np.intp), weights[free]
        place(some, (np.asarray(shares) * total[label] - placed[:, label]).tolist(), weights)
        for part in range(len(shares)):
            gained = np.asarray(counts[some[parts[some] == part]].sum(axis=0)).ravel()
            placed[part] += gained
            left -= gained
    some = np.flatnonzero(parts < 0)
    some = some[np.argsort(-sizes[some], kind="stable")]
    place(some, [0.0] * len(shares), np.zeros(len(some)))
    found: NDArray[np.intp] = parts[own]
    return found
