"""Labels in whatever form they come, turned into classes and indices into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError

# What pandas reads as missing, and what its missing values are written as.
# fmt: off
_MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null",
))
# fmt: on
_SHOWN = 5
# Numbers of different values, and rows with the same, that tell measurements from codes.
_SOME, _MANY, _VERY_MANY, _FEW_ROWS = 10, 20, 40, 20


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none: None, NaN, NA, NaT, and the texts for these.

    Examples
    --------
    >>> [is_missing(value) for value in (None, float("nan"), " NaN ", "<NA>", "none", 0)]
    [True, True, True, True, False, False]
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value.strip() in _MISSING
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating) and bool(value != value)


def as_text(value: Any) -> str:
    """Return a value of a column as text, ``""`` where it is missing."""
    return "" if is_missing(value) else str(value)


def encode_labels(
    labels: Iterable[Any],
    n: int,
    *,
    classes: Sequence[str] | None = None,
    as_written: bool = False,
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Turn labels into classes and indices.

    Parameters
    ----------
    labels : iterable
        One a input: str, int, bool, a NumPy array of those, or floats that are whole numbers.
        What `is_missing` of them stands for "no label".
    n : int
        Number of inputs.
    classes : sequence of str or None, default None
        The classes and their order; otherwise those that occur, sorted by name, or by number when
        all labels are numbers.
    as_written : bool, default False
        Whether text is a label whatever it says, as the name of a folder is; but empty text.

    Returns
    -------
    classes : tuple of str
    indices : ndarray of shape (n,), int32
        Positions in `classes`, -1 for no label.

    Raises
    ------
    DatasetError
        For another length, another rank, fractions, or a label that is not in `classes`.

    Examples
    --------
    >>> encode_labels([10, 9, None], 3)
    (('9', '10'), array([ 1,  0, -1], dtype=int32))
    """
    if isinstance(labels, str | bytes):
        raise DatasetError(
            f"expected one label for each of {n} inputs, received the text {labels!r}"
        )
    values = _values(labels)
    if len(values) != n:
        raise DatasetError(f"expected {n} labels, one for each input, received {len(values)}")
    kept = set(classes or ())
    names = [
        _name(value)
        if not is_missing(value) or (isinstance(value, str) and (as_written or value in kept))
        else ""
        for value in values
    ]
    found = {name for name in names if name}
    if classes is None:
        numbers = all(type(v) is int or not k for v, k in zip(values, names, strict=True))
        order = sorted(found, key=int) if numbers else sorted(found)
    else:
        order = [str(name) for name in classes]
        if unknown := sorted(found - set(order)):
            raise DatasetError(
                f"labels that are no classes: {', '.join(unknown[:5])}; the classes are "
                f"{', '.join(order[:20])}"
            )
    position = {name: i for i, name in enumerate(order)}
    indices = [position[name] if name else -1 for name in names]
    return tuple(order), np.array(indices, dtype=np.int32)


def check_complete(labels: Any) -> None:
    """Refuse labels of which some are missing, where every row has to have one.

    Raises
    ------
    DatasetError
        Naming the rows.
    """
    ndim = getattr(labels, "ndim", 1)
    kind = getattr(getattr(labels, "dtype", None), "kind", "O")
    if ndim != 1 or kind not in "OUSf" or not isinstance(labels, Iterable):
        return
    rows = [row for row, value in enumerate(labels) if is_missing(value)]
    if rows:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
        raise DatasetError(
            f"expected a label for every row, {len(rows):,} have none (None, NaN, empty or the "
            f"text for these): rows {shown}; leave these rows out, or label them"
        )


def look_like_measurements(names: Sequence[str], rows: int) -> str:
    """Return in what way labels look like numbers that were measured, "" where they do not.

    Parameters
    ----------
    names : sequence of str
        The distinct labels.
    rows : int
        Number of rows that have one.

    Notes
    -----
    Codes of classes are whole, run from 0 or 1 without gaps, and have several rows each. What has
    a fraction, or many values of which few rows have the same, was measured.

    Examples
    --------
    >>> look_like_measurements(list(map(str, range(10))), 20)
    ''
    >>> look_like_measurements(["1.5", "2.25", "3.0"], 90)
    'look like measurements: 3 different numbers in 90 rows, such as 1.5, 2.25, 3.0'
    """
    try:
        values = sorted(float(name.replace(",", ".")) for name in names)
    except ValueError:
        return ""
    count = len(values)
    if not count or not np.isfinite(values).all():
        return ""
    whole = all(value.is_integer() for value in values)
    coded = whole and values[0] in (0, 1) and values[-1] - values[0] == count - 1
    each = rows / count
    if coded:
        measured = count > _MANY and each < 2
    elif whole:
        measured = (count > _MANY and each < _FEW_ROWS) or (count > _SOME and each < 2)
        measured |= count > _VERY_MANY
    else:
        measured = count > 2
    if not measured:
        return ""
    shown = ", ".join(names[:3])
    return f"look like measurements: {count} different numbers in {rows} rows, such as {shown}"


def _values(labels: Iterable[Any]) -> list[Any]:
    """Return plain Python values; whole floats (integers beside NaN) become int."""
    array = labels if isinstance(labels, np.ndarray) else None
    if array is None and hasattr(labels, "__array__"):
        array = np.asarray(labels)
    if array is not None and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array is not None and array.ndim != 1:
        raise DatasetError(
            f"expected labels of shape (n,), received {array.shape}: turn one-hot rows into "
            "numbers with .argmax(axis=1)"
        )
    values = list(labels) if array is None else array.tolist()
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in plain]


def _name(value: Any) -> str:
    """Return the class name of one label."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"expected labels in UTF-8, received {value!r}") from error
    if isinstance(value, float):
        raise DatasetError(
            f"expected labels that name classes, received {value!r}: featx classifies, it does "
            "not regress; turn numbers into classes first"
        )
    if isinstance(value, str | int):
        return str(value)
    raise DatasetError(
        f"expected labels of str, int or bool, received {type(value).__name__}: {value!r}"
    )
