"""Splits in which equal or related images are never on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.exceptions import DatasetError
from featx.heads.targets import label_strata

_TRIES = 20


def stratified_folds(
    y: NDArray[np.generic],
    *,
    folds: int = 5,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split rows into folds with the classes in equal shares."""
    names, codes = np.unique(y, return_inverse=True)
    own = np.arange(len(y)) if groups is None else groups
    pairs = np.unique(np.stack([codes, own], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(names))
    smallest = int(counts.min())
    if smallest < 2:
        lone = np.flatnonzero(counts < 2)
        images = int((codes == lone[0]).sum())
        found, needed = "1 image", "2"
        if images > 1:
            found, needed = f"{images} images that are equal or of one group", "2 that are not,"
        others = f" ({len(lone) - 1} more classes likewise)" if len(lone) > 1 else ""
        raise DatasetError(
            f"class {str(names[lone[0]])!r} has {found}{others}, {folds} folds need {needed} or "
            "more of each class: add images of it, or leave the class out"
        )
    number = min(folds, smallest)
    if len(np.unique(own)) == len(own):
        splitter = StratifiedKFold(number, shuffle=True, random_state=seed)
        return list(splitter.split(codes, codes))
    grouped = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    return list(grouped.split(codes, codes, own))


def label_folds(
    labels: NDArray[Any],
    *,
    folds: int = 5,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split rows that have any number of labels into folds with each label in equal shares."""
    own = np.arange(len(labels)) if groups is None else groups
    units, firsts = np.unique(own, return_index=True)
    number = min(folds, len(units))
    if number < 2:
        raise DatasetError(
            f"{len(own)} images that are equal or of one group: cross-validation needs 2 or more"
        )
    parts = label_strata(labels, [1 / number] * number, groups=own, seed=seed)
    for empty in set(range(number)) - set(parts.tolist()):
        # Groups of many images have filled the others: take one from where there are most.
        fullest = np.bincount(parts[firsts], minlength=number).argmax()
        given = units[parts[firsts] == fullest][0]
        parts[own == given] = empty
    tested = [parts == part for part in range(number)]
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in tested]


def repeated_folds(
    y: NDArray[np.generic],
    *,
    folds: int = 5,
    repeats: int = 1,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split rows into folds several times, each time with every class in every training part."""
    found: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for repeat in range(repeats):
        found += _complete_folds(y, folds=folds, groups=groups, seed=seed + repeat)
    return found


def _complete_folds(
    y: NDArray[np.generic], *, folds: int, groups: NDArray[np.int64] | None, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    names, codes = np.unique(y, return_inverse=True)
    missing = 0
    for attempt in range(_TRIES):
        # The seeds of repeats are next to each other: further tries are far from all of them.
        split = stratified_folds(y, folds=folds, groups=groups, seed=seed + 100_003 * attempt)
        counts = [np.bincount(codes[train], minlength=len(names)) for train, _ in split]
        lacking = np.flatnonzero(np.min(counts, axis=0) == 0)
        if not lacking.size and all(len(test) for _, test in split):
            return split
        missing = int(lacking[0]) if lacking.size else missing
    raise DatasetError(
        f"no split into {len(split)} folds leaves class {str(names[missing])!r} an image to train "
        "on in each: images that are equal or of one group stay on one side, and they tie this "
        "class together; take fewer folds, or finer groups"
    )


def hold_out(
    y: NDArray[np.generic],
    *,
    share: float = 0.2,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Set a share of every class aside."""
    return repeated_folds(y, folds=max(2, round(1 / share)), groups=groups, seed=seed)[0]


def named_fold(
    splits: NDArray[np.str_], name: str, groups: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Take a split of the dataset as the one that tests, and all other rows as those that train."""
    inside = splits == name
    known = np.isin(groups, groups[~inside])
    return np.flatnonzero(~inside), np.flatnonzero(inside & ~known)
