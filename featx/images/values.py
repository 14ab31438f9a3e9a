"""Numbers as labels: in columns of a table, as text of a dataset, and read from this text."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError
from featx.images.labels import SEPARATOR, is_missing

VALUE = "value"
"""What a number is called that has no column name."""

_EQUALS = "="


def as_number(text: str) -> float:
    """Return the number that text stands for, with a point or a comma before its fraction.

    >>> as_number("3,5")
    3.5
    """
    plain = text.strip()
    return float(plain.replace(",", ".") if plain.count(",") == 1 and "." not in plain else plain)


def value_columns(header: Sequence[str], columns: Sequence[str], file: str) -> dict[str, int]:
    """Return where in a header some columns are, by the names that were given."""
    known = [name.casefold() for name in header]
    chosen: dict[str, int] = {}
    for name in columns:
        if _EQUALS in name or SEPARATOR in name or not name.strip():
            raise DatasetError(
                f"expected a target column without {_EQUALS!r} and {SEPARATOR!r} in its name, "
                f"received {name!r}: rename it"
            )
        if known.count(name.casefold()) != 1:
            near = difflib.get_close_matches(name.casefold(), known, n=1)
            hint = f"; did you mean {header[known.index(near[0])]!r}?" if near else ""
            raise DatasetError(
                f"expected one column {name!r} in {file}, found columns: {', '.join(header)}{hint}"
            )
        chosen[name] = known.index(name.casefold())
    if len(set(chosen.values())) < len(columns):
        raise DatasetError(f"a target column is given twice: {', '.join(columns)}")
    return chosen


def value_text(cells: Mapping[str, str], where: str) -> str:
    """Return the label of a row with numbers by column, ``""`` where it has none.

    >>> value_text({"age": "3.5", "mass": "7"}, "line 2")
    'age=3.5|mass=7.0'
    """
    missing = [name for name, cell in cells.items() if is_missing(cell)]
    if len(missing) == len(cells):
        return ""
    if missing:
        raise DatasetError(
            f"{where}, column {missing[0]!r}: expected a number, received none, where other target "
            "columns have one: fill it in, or leave all of them empty"
        )
    numbers = []
    for name, cell in cells.items():
        try:
            number = as_number(cell)
        except ValueError as error:
            raise DatasetError(
                f"{where}, column {name!r}: expected a number, received {cell[:40]!r}: correct it, "
                "or leave it empty for none"
            ) from error
        if not math.isfinite(number):
            raise DatasetError(
                f"{where}, column {name!r}: expected a finite number, received {cell[:40]!r}: "
                "correct it, or leave it empty for none"
            )
        numbers.append(f"{name}{_EQUALS}{number!r}")
    return SEPARATOR.join(numbers)


def look_like_values(texts: Sequence[str]) -> str:
    """Return in what way labels are numbers of target columns, "" where they are not.

    >>> look_like_values(["age=3.5|mass=7.0", "age=4.0|mass=9.5"])
    "are numbers of target columns, such as 'age=3.5|mass=7.0'"
    """
    if not texts or not all(_EQUALS in text for text in texts):
        return ""
    try:
        read_values(texts, "")
    except DatasetError:
        return ""
    return f"are numbers of target columns, such as {texts[0]!r}"


def read_values(
    texts: Sequence[str], what: str, *, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the names of the numbers that labels stand for, and the numbers (n, k).

    Labels are numbers, or those of several columns as `value_text` writes them. With ``names``,
    these columns are read, as a model has them.

    >>> read_values(["age=3.5|mass=7.0"], "the data")
    (('age', 'mass'), array([[3.5, 7. ]]))
    """
    rows: list[list[float]] = []
    expected = None if names is None else tuple(names)
    for text in texts:
        parts = [part.rpartition(_EQUALS) for part in text.split(SEPARATOR)]
        given = {name.strip() or VALUE: number for name, _, number in parts}
        if expected is None:
            expected = tuple(given)
        if not set(expected) <= set(given):
            raise DatasetError(
                f"{what} has labels of {', '.join(given)}, expected numbers of "
                f"{', '.join(expected)}: name the columns with --target-column "
                "(target_columns=...)"
            )
        try:
            numbers = [as_number(given[name]) for name in expected]
        except ValueError as error:
            raise DatasetError(
                f"the labels of {what} are not all numbers, such as {text[:40]!r}: correct them, "
                "name columns of numbers with --target-column (target_columns=...), or learn "
                "classes without --regression (regression=False)"
            ) from error
        if not np.isfinite(numbers).all():
            raise DatasetError(
                f"the labels of {what} have to be finite numbers, received {text[:40]!r}: correct "
                "it, or leave it empty for none"
            )
        rows.append(numbers)
    values = np.array(rows, np.float64).reshape(len(rows), len(expected or ()))
    return expected or (), values
