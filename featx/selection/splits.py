"""Splits in which equal or related images are never on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from featx.exceptions import DatasetError
from featx.heads.rows import Fold
from featx.heads.targets import label_strata

_TRIES = 20
# Groups of more rows than this, and than this share of all, are balanced by scikit-learn.
_FEW_OF_A_GROUP, _GROUP_SHARE = 3, 100
_MANY_OF_A_CLASS = 100


def repeated_folds(
    y: NDArray[np.generic],
    *,
    folds: int = 5,
    repeats: int = 1,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Split rows into folds several times.

    Classes (n,), or labels (n, labels) of 0 and 1, are in equal shares; so are low, middling and
    high numbers (n, k), which are float.
    """
    groups = np.arange(len(y)) if groups is None else groups
    several = _value_folds if y.dtype.kind == "f" else _label_folds
    split = several if y.ndim == 2 else _class_folds
    return [fold for number in range(repeats) for fold in split(y, folds, groups, seed + number)]


def _label_folds(
    labels: NDArray[np.generic], folds: int, groups: NDArray[np.int64], seed: int
) -> list[Fold]:
    """Split rows that have any number of labels."""
    units, firsts = np.unique(groups, return_index=True)
    number = min(folds, len(units))
    if number < 2:
        raise DatasetError(
            f"{len(groups)} images that are equal or of one group: cross-validation needs 2 or more"
        )
    known = labels.astype(np.uint8, copy=False)
    parts = label_strata(known, [1 / number] * number, groups=groups, seed=seed)
    for empty in set(range(number)) - set(parts.tolist()):
        # Groups of many images have filled the others: take one from where there are most.
        fullest = np.bincount(parts[firsts], minlength=number).argmax()
        moved = units[parts[firsts] == fullest][0]
        parts[groups == moved] = empty
    tested = [parts == part for part in range(number)]
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in tested]


_STRATA = 10


def _value_folds(
    values: NDArray[np.generic], folds: int, groups: NDArray[np.int64], seed: int
) -> list[Fold]:
    """Split rows with numbers: groups of about the same number are dealt out in turn."""
    units, unit_of = np.unique(groups, return_inverse=True)
    number = min(folds, len(units))
    if number < 2:
        raise DatasetError(
            f"{len(groups)} images that are equal or of one group: cross-validation needs 2 or more"
        )
    ranks = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0).mean(axis=1)
    means = np.bincount(unit_of, ranks) / np.bincount(unit_of)
    strata = max(1, min(_STRATA, len(units) // number))
    stratum = np.argsort(np.argsort(means, kind="stable")) * strata // len(units)
    parts = dealt_folds(stratum[unit_of], groups, number, seed)
    return [(np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(number)]


def _class_folds(
    y: NDArray[np.generic], folds: int, groups: NDArray[np.int64], seed: int, *, exact: bool = False
) -> list[Fold]:
    """Split rows of one class each, with every class in every training part."""
    names, codes = np.unique(y, return_inverse=True)
    number = min(folds, _smallest_class(names, codes, groups, folds))
    _, sizes = np.unique(groups, return_counts=True)
    missing = 0
    for attempt in range(_TRIES):
        # The seeds of repeats are next to each other: further tries are far from all of them.
        drawn = seed + 100_003 * attempt
        if sizes.max() <= max(_FEW_OF_A_GROUP, len(groups) // _GROUP_SHARE):
            parts = dealt_folds(codes, groups, number, drawn, exact=exact)
            split = [
                (np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(number)
            ]
        else:
            splitter = StratifiedGroupKFold(number, shuffle=True, random_state=drawn)
            split = list(splitter.split(codes, codes, groups))
        counts = [np.bincount(codes[train], minlength=len(names)) for train, _ in split]
        lacking = np.flatnonzero(np.min(counts, axis=0) == 0)
        if not lacking.size and all(len(test) for _, test in split):
            return split
        missing = int(lacking[0]) if lacking.size else missing
    raise DatasetError(
        f"no split into {number} folds leaves class {str(names[missing])!r} an image to train "
        "on in each: images that are equal or of one group stay on one side, and they tie this "
        "class together; take fewer folds, or finer groups"
    )


def dealt_folds(
    codes: NDArray[np.integer[Any]],
    groups: NDArray[np.int64],
    folds: int,
    seed: int,
    *,
    exact: bool = False,
) -> NDArray[np.intp]:
    """Return a fold (n,) for each row: the groups of each class are dealt out by a hash.

    Of a class of many groups the hash alone decides, so that no image moves when the label of
    another is edited; with `exact`, and for fewer, its order does, in equal shares. Without the
    order, folds of few images would train on few of what they are tested on.
    """
    units, first, unit_of = np.unique(groups, return_index=True, return_inverse=True)
    drawn = _hashed(units, seed)
    of_class = codes[first]
    order = np.lexsort((drawn, of_class))
    counts = np.bincount(of_class)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(units), np.intp)
    rank[order] = np.arange(len(units)) - np.repeat(starts, counts)
    size = counts[of_class]
    # Of several classes that do not divide evenly, not all begin with the same fold.
    by_rank = (rank * folds // size + of_class) % folds
    by_hash = (drawn * folds).astype(np.intp)
    chosen = np.where((size >= _MANY_OF_A_CLASS) & (not exact), by_hash, by_rank)
    return np.asarray(chosen[unit_of])


def _hashed(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each number and the seed.

    Notes
    -----
    Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: the output
    of SplitMix64.
    """
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) + np.uint64(seed % (1 << 64)) * np.uint64(0xD1342543DE82EF95)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.asarray((x >> np.uint64(11)).astype(np.float64) / (1 << 53))


def _smallest_class(
    names: NDArray[np.generic], codes: NDArray[np.intp], groups: NDArray[np.int64], folds: int
) -> int:
    """Return how many images or groups the smallest class has, at least 2."""
    pairs = np.unique(np.stack([codes, groups], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(names))
    lone = np.flatnonzero(counts < 2)
    if not lone.size:
        return int(counts.min())
    images = int((codes == lone[0]).sum())
    what, needed = "1 image", "2"
    if images > 1:
        what, needed = f"{images} images that are equal or of one group", "2 that are not,"
    others = f" ({len(lone) - 1} more classes likewise)" if len(lone) > 1 else ""
    raise DatasetError(
        f"class {str(names[lone[0]])!r} has {what}{others}, {folds} folds need {needed} or "
        "more of each class: add images of it, or leave the class out"
    )


def hold_out(
    y: NDArray[np.generic],
    *,
    share: float = 0.2,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Fold:
    """Set a share of every class aside."""
    groups = np.arange(len(y)) if groups is None else groups
    return _class_folds(y, max(2, round(1 / share)), groups, seed, exact=True)[0]


def named_fold(splits: NDArray[np.str_], name: str, groups: NDArray[np.int64]) -> Fold:
    """Take a split of the dataset as the one that tests, and all other rows as those that train."""
    inside = splits == name
    known = np.isin(groups, groups[~inside])
    return np.flatnonzero(~inside), np.flatnonzero(inside & ~known)
