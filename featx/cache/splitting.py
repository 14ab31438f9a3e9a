"""Splits of rows into train, val and test, in which related rows are never on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError

# Held-out splits are cut first: a val added later takes from train and never from test.
_FIRST, _LAST = ("test", "val"), "train"


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """Return fractions in the order in which they are cut.

    Raises
    ------
    DatasetError
        Unless they are positive and their sum is 1.

    Examples
    --------
    >>> check_fractions({"train": 0.7, "val": 0.1, "test": 0.2})
    {'test': 0.2, 'val': 0.1, 'train': 0.7}
    """
    bad = [name for name, part in fractions.items() if not name.strip() or not 0 < part <= 1]
    if bad or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DatasetError(
            "expected fractions above 0 whose sum is 1, such as train 0.8 and test 0.2, received "
            f"{dict(fractions)}"
        )
    middle = sorted(set(fractions) - {*_FIRST, _LAST})
    return {name: float(fractions[name]) for name in (*_FIRST, *middle, _LAST) if name in fractions}


def related_rows(keys: NDArray[np.uint8], groups: Sequence[str]) -> NDArray[np.int64]:
    """Return for each row the number of one row that stands for all that belong with it.

    Rows belong together when their keys are equal, or when they share a group, and so on along
    chains of the two.

    Parameters
    ----------
    keys : ndarray of shape (n, 32), uint8
        Keys of the rows.
    groups : sequence of str of length n
        Empty text is none.

    Returns
    -------
    ndarray of shape (n,), int64

    Examples
    --------
    >>> keys = np.array([[1] * 32, [2] * 32, [1] * 32, [3] * 32], np.uint8)
    >>> related_rows(keys, ["", "a", "a", ""]).tolist()
    [0, 0, 0, 3]
    """
    rows = np.arange(len(keys))
    if not len(keys):
        return rows
    whole = np.ascontiguousarray(keys).view("V32").ravel()
    _, by_key = np.unique(whole, return_inverse=True)
    names = np.asarray(groups, dtype=np.str_)
    _, first, by_group = np.unique(names, return_index=True, return_inverse=True)
    by_group = np.where(names == "", len(first) + rows, by_group)
    found = rows
    while True:
        before = found
        for part in (by_key, by_group):
            least = np.full(int(part.max()) + 1, len(rows))
            np.minimum.at(least, part, found)
            found = least[part]
        # Each number is that of a row of the same kind, so its own is one too: chains halve.
        found = found[found]
        if np.array_equal(found, before):
            return found


def hash_splits(
    keys: NDArray[np.uint8],
    groups: Sequence[str],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
) -> list[str]:
    """Return the split of each row, decided by nothing but its group, else its key, and the seed.

    Rows that come later move no row that was there, unless they tie two groups together (an image
    of one group that equals an image of another byte for byte): then one of both has to move, and
    the smaller hash decides.

    Parameters
    ----------
    keys : ndarray of shape (n, 32), uint8
        Keys of the rows.
    groups : sequence of str of length n
        Empty text is none.
    fractions : mapping of str to float
        Share of each split, of all groups and ungrouped images.
    seed : int, default 0
        Another seed is another split.

    Returns
    -------
    list of str

    Examples
    --------
    >>> keys = np.random.default_rng(0).integers(0, 256, (5, 32), np.uint8)
    >>> hash_splits(keys, [""] * 5, {"train": 0.6, "test": 0.4})
    ['test', 'test', 'train', 'train', 'test']
    """
    cuts = check_fractions(fractions)
    places = _places(keys, groups, seed)
    names = list(cuts)
    ends = np.cumsum(list(cuts.values()))[:-1]
    return [names[at] for at in np.searchsorted(ends, places, side="right").tolist()]


def _places(keys: NDArray[np.uint8], groups: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row, the same for related rows."""
    together = related_rows(keys, groups)
    named = np.array([bool(group) for group in groups], np.bool_)
    places = np.full(len(keys), np.inf)
    # The key counts only where no group is near, so that a copy without a group moves nothing.
    grouped = np.zeros(len(keys), np.bool_)
    grouped[together[named]] = True
    known: dict[str, float] = {}
    for row, group in enumerate(groups):
        if group:
            if group not in known:
                known[group] = _place(seed, "group", group.encode("utf-8", "surrogateescape"))
            places[row] = known[group]
        elif not grouped[together[row]] and together[row] == row:
            places[row] = _place(seed, "key", keys[row].tobytes())
    least = np.full(len(keys), np.inf)
    np.minimum.at(least, together, places)
    spread: NDArray[np.float64] = least[together]
    return spread


def _place(seed: int, kind: str, name: bytes) -> float:
    digest = hashlib.sha256(f"featx-split-1 {seed} {kind} ".encode("ascii") + name).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def stratified_splits(
    keys: NDArray[np.uint8],
    groups: Sequence[str],
    labels: NDArray[np.int32],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    earlier: Mapping[bytes, str] | None = None,
) -> list[str]:
    """Return the split of each row, with the classes in equal shares.

    Parameters
    ----------
    keys, groups, fractions, seed
        As in `hash_splits`.
    labels : ndarray of shape (n,), int32
        Codes of classes; related rows count for the class of the first.
    earlier : mapping of bytes to str, optional
        Splits by key that stay as they are; rows that are related to none of them are placed as
        `hash_splits` does, since the shares of what is fixed cannot be mended without moving it.

    Returns
    -------
    list of str
    """
    cuts = check_fractions(fractions)
    together = related_rows(keys, groups)
    if earlier is not None:
        kept: dict[int, str] = {}
        for row, stand_in in enumerate(together.tolist()):
            split = earlier.get(keys[row].tobytes(), "")
            if split:
                kept.setdefault(stand_in, split)
        fresh = hash_splits(keys, groups, fractions, seed=seed)
        return [kept.get(at, new) for at, new in zip(together.tolist(), fresh, strict=True)]
    places = _places(keys, groups, seed)
    weights = np.bincount(together, minlength=len(keys))
    heads = np.flatnonzero(weights)
    names = list(cuts)
    ends = np.cumsum(list(cuts.values()))[:-1]
    chosen = np.zeros(len(keys), np.int64)
    for label in np.unique(labels[heads]):
        own = heads[labels[heads] == label]
        own = own[np.argsort(places[own], kind="stable")]
        middles = np.cumsum(weights[own]) - weights[own] / 2
        chosen[own] = np.searchsorted(ends, middles / weights[own].sum(), side="right")
    return [names[at] for at in chosen[together].tolist()]
