"""Splits in which equal or related images are never on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.exceptions import DatasetError

__all__ = ["leak_groups", "stratified_folds"]


def leak_groups(
    keys: NDArray[np.uint8] | None, groups: Sequence[str] | NDArray[np.str_] | None, rows: int
) -> NDArray[np.int64]:
    """Return a number for each row; rows with equal numbers belong on one side of a split.

    Rows belong together when their images are equal byte for byte, or when they share a group, and
    so on along chains of the two.

    Parameters
    ----------
    keys : ndarray of shape (n, 32), uint8, or None
        SHA-256 of each image.
    groups : sequence of str of length n, or None
        Groups of the dataset; empty text is none.
    rows : int
        The number n.

    Returns
    -------
    ndarray of shape (n,), int64

    Examples
    --------
    >>> leak_groups(None, ["a", "", "a", ""], 4).tolist()
    [0, 1, 0, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [np.arange(rows)]
    if keys is not None and rows:
        whole = np.ascontiguousarray(keys).view("V32").ravel()
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)
        links.append(first[group])
    if groups is not None and rows:
        names = np.asarray(groups)
        _, first, group = np.unique(names, return_index=True, return_inverse=True)
        links.append(np.where(names == "", np.arange(rows), first[group]))
    sources = np.tile(np.arange(rows), len(links))
    edges = (np.ones(len(sources), np.int8), (sources, np.concatenate(links)))
    _, numbers = connected_components(coo_array(edges, shape=(rows, rows)), directed=False)
    joined: NDArray[np.int64] = numbers.astype(np.int64)
    return joined


def stratified_folds(
    y: NDArray[np.generic],
    *,
    folds: int = 5,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split rows into folds with the classes in equal shares.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Labels.
    folds : int, default 5
        Number of folds; fewer where the smallest class has fewer images, but at least 2.
    groups : ndarray of shape (n,), int64, optional
        Rows with equal numbers stay together, see `leak_groups`.
    seed : int, default 0
        Seed of the shuffling.

    Returns
    -------
    list of tuple (train, test)
        Row numbers.

    Raises
    ------
    DatasetError
        If a class has one image (or one group) only.
    """
    names, codes = np.unique(y, return_inverse=True)
    own = np.arange(len(y)) if groups is None else groups
    pairs = np.unique(np.stack([codes, own], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(names))
    smallest = int(counts.min())
    if smallest < 2:
        raise DatasetError(
            f"class {str(names[counts.argmin()])!r} has {smallest} distinct image (or group): "
            "cross-validation needs 2 or more of each class"
        )
    number = min(folds, smallest)
    if len(np.unique(own)) == len(own):
        splitter = StratifiedKFold(number, shuffle=True, random_state=seed)
        return list(splitter.split(codes, codes))
    grouped = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    return list(grouped.split(codes, codes, own))
