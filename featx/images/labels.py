"""Labels in whatever form they come, turned into classes and indices into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError

__all__ = ["encode_labels"]


def encode_labels(
    labels: Iterable[Any], n: int, *, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Turn labels into classes and indices.

    Parameters
    ----------
    labels : iterable
        One a input: str, int, bool, a NumPy array of those, or floats that are whole numbers.
        None, NaN and the empty string stand for "no label".
    n : int
        Number of inputs.
    classes : sequence of str or None, default None
        The classes and their order; otherwise those that occur, sorted by name, or by number when
        all labels are numbers.

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
    names = [_name(value) for value in values]
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
    """Return the class name of one label, ``""`` for none."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"expected labels in UTF-8, received {value!r}") from error
    if isinstance(value, float):
        if value != value:
            return ""
        raise DatasetError(
            f"expected labels that name classes, received {value!r}: featx classifies, it does "
            "not regress; turn numbers into classes first"
        )
    if isinstance(value, str | int):
        return str(value)
    raise DatasetError(
        f"expected labels of str, int or bool, received {type(value).__name__}: {value!r}"
    )
