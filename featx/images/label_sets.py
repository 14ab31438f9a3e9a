"""Several labels an image: the forms they come in, and a matrix of 0 and 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.images.labels import check_complete, is_missing

SEPARATOR = "|"
"""Between the labels of one image in text: ``ant|winged``. By itself it says that none applies."""


def read_label_sets(y: Any) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Read which labels each image has.

    Parameters
    ----------
    y : ndarray of shape (n, k), or sequence of length n
        A matrix of 0 and 1 (also as nested lists of two columns or more), a column a label; or
        one collection of labels an image; or one text an image, its labels separated by ``|``.

    Returns
    -------
    labels : ndarray of shape (k,)
        Sorted; 0 to k - 1 for a matrix.
    Y : ndarray of shape (n, k), int
        1 where an image has a label.

    Raises
    ------
    DatasetError
        If it is none of these.

    Examples
    --------
    >>> labels, Y = read_label_sets(["ant|winged", "bee|winged", "|"])
    >>> labels.tolist(), Y.tolist()
    (['ant', 'bee', 'winged'], [[1, 0, 1], [0, 1, 1], [0, 0, 0]])
    >>> read_label_sets([{"ant"}, {"ant", "bee"}])[1].tolist()
    [[1, 0], [1, 1]]
    """
    y = y.toarray() if hasattr(y, "toarray") else y
    matrix = np.asarray(y) if hasattr(y, "shape") or _is_matrix(y) else None
    if matrix is not None and matrix.ndim == 2:
        if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (0, 1)).all():
            raise DatasetError(
                "expected a matrix of 0 and 1, a column a label, received "
                f"{np.unique(matrix)[:5].tolist()}: pass 1 where an image has a label"
            )
        return np.arange(matrix.shape[1]), matrix.astype(np.intp)
    if isinstance(y, str | bytes) or not isinstance(y, Iterable):
        raise DatasetError(f"expected the labels of each image, received {y!r}")
    rows = list(y)
    check_complete(rows)
    sets = [_set(value) for value in rows]
    labels = np.array(sorted({label for one in sets for label in one}, key=str))
    return labels, label_matrix(sets, labels.tolist())


def label_matrix(
    sets: Sequence[Any], labels: Sequence[Any], *, what: str = "the data"
) -> NDArray[np.intp]:
    """Write labels of images as a matrix of 0 and 1.

    Parameters
    ----------
    sets : sequence of str or of collections
        The labels of each image, as in `read_label_sets`.
    labels : sequence
        What the columns stand for.
    what : str
        What an error is to call the images.

    Returns
    -------
    Y : ndarray of shape (n, k), int

    Raises
    ------
    DatasetError
        For a label that is not among them.
    """
    column = {label: number for number, label in enumerate(labels)}
    Y = np.zeros((len(sets), len(column)), dtype=np.intp)
    strangers: set[str] = set()
    for row, value in enumerate(sets):
        for label in _set(value):
            if label in column:
                Y[row, column[label]] = 1
            else:
                strangers.add(str(label))
    if strangers:
        known = ", ".join(map(str, list(column)[:10]))
        raise DatasetError(
            f"{what} has labels that are not known from training: "
            f"{', '.join(sorted(strangers)[:5])}; known are {known}"
        )
    return Y


def look_like_sets(names: Sequence[str]) -> str:
    """Return in what way labels look like several of an image, "" where they do not.

    Examples
    --------
    >>> look_like_sets(["ant|winged", "bee|winged"])
    "look like several labels an image, such as 'ant|winged'"
    >>> look_like_sets(["ant", "bee|wasp"])
    ''
    """
    joined = [name for name in names if SEPARATOR in name]
    parts = [part for name in names for part in {*name.split(SEPARATOR)}]
    if joined and (SEPARATOR in names or len(set(parts)) < len(parts)):
        return f"look like several labels an image, such as {joined[0]!r}"
    return ""


def _set(value: Any) -> list[Any]:
    if isinstance(value, str):
        parts = (part.strip() for part in value.split(SEPARATOR))
        return sorted({part for part in parts if not is_missing(part)})
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise DatasetError(
            f"expected a collection of labels, or text such as ant{SEPARATOR}winged, for each "
            f"image, received {value!r}"
        )
    return sorted({label for label in value if not is_missing(label)}, key=str)


def _is_matrix(y: Any) -> bool:
    """Whether nested lists are a matrix of 0 and 1, not collections of labels."""
    if not (isinstance(y, list | tuple) and y and all(isinstance(r, list | tuple) for r in y)):
        return False
    widths = {len(row) for row in y}
    return len(widths) == 1 and widths.pop() > 1 and all(v in (0, 1) for row in y for v in row)
