"""A head with the values of its parameters that a search may try."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from featx.exceptions import HeadError
from featx.heads.table import HEADS, make_head, parse_head

_RANGE = re.compile(r"(?P<low>[^.\s].*?)\.\.(?P<high>.+)", re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class Range:
    """All numbers between two, on a logarithmic scale where they are above 0.

    Parameters
    ----------
    low, high : int or float
        The ends, both of which are in it; whole numbers where both are int.

    Examples
    --------
    >>> Range(0.0001, 100.0).at(0.5)
    0.1
    >>> Range(1, 9).at(0.5)
    3
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise HeadError(
                f"a range goes from a number to a greater one, received {self}: write, for "
                "example, C=0.001..10"
            )

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def logarithmic(self) -> bool:
        """Whether equal steps are equal ratios."""
        return self.low > 0

    def at(self, share: float) -> float:
        """Return the number at a share (0 to 1) of the way, to 3 digits or whole."""
        if self.logarithmic:
            value = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        else:
            value = self.low * (1 - share) + self.high * share
        value = round(value) if self.whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)


Axis: TypeAlias = tuple[Any, ...] | Range
"""The values of one parameter."""


@dataclass(frozen=True, slots=True)
class HeadGrid:
    """One head with the values of its parameters.

    Parameters
    ----------
    label : str
        Its name, or the text of the estimator.
    grid : tuple of (str, Axis)
        The values of each parameter; their product is tried.
    estimator : estimator, optional
        The head itself, where it was handed in.
    """

    label: str
    grid: tuple[tuple[str, Axis], ...] = ()
    estimator: Any = field(default=None, compare=False, repr=False)


def head_grid(given: Any) -> HeadGrid:
    """Read a head and its grid from any of the forms that a user may give."""
    if isinstance(given, str):
        return _checked(_from_text(given))
    if isinstance(given, Mapping):
        if "head" not in given:
            raise HeadError(f"expected the key 'head' beside parameters, received {dict(given)!r}")
        params = {name: value for name, value in given.items() if name != "head"}
        return _checked(_from_pair(given["head"], params))
    if isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], Mapping):
        return _checked(_from_pair(given[0], given[1]))
    return _checked(_from_pair(given, {}))


def _from_pair(head: Any, params: Mapping[str, Any]) -> HeadGrid:
    if isinstance(head, str) and not params:
        return _from_text(head)
    own = _from_text(head, default=False) if isinstance(head, str) else None
    grid = dict(own.grid) if own else {}
    grid.update({str(name): _axis(name, value) for name, value in params.items()})
    if own is not None:
        return HeadGrid(own.label, tuple(grid.items()))
    make_head(head)  # refuses what is no estimator
    return HeadGrid(" ".join(repr(head).split()), tuple(grid.items()), head)


def _axis(name: str, value: Any) -> Axis:
    if isinstance(value, Range):
        return value
    if isinstance(value, str):
        return _axis_of_text(value, "value", name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, tuple):
        if not value:
            raise HeadError(
                f"the search space is empty (no value for {name!r}): list at least one, or leave "
                "the parameter out"
            )
        return tuple(_plain(item) for item in value)
    return (_plain(value),)


def _plain(value: Any) -> Any:
    """Give NumPy's numbers as Python's, and a list as a tuple, so that equal values look equal."""
    value = value.item() if isinstance(value, np.generic) else value
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _from_text(text: str, *, default: bool = True) -> HeadGrid:
    name, colon, rest = text.partition(":")
    name = parse_head(name).name
    row = HEADS.get(name)
    if not colon:
        own = row.grid if default and row is not None else {}
        return HeadGrid(name, tuple((key, tuple(values)) for key, values in own.items()))
    grid: dict[str, Axis] = {}
    unnamed: list[list[Any]] = []
    for item in _divided(rest, ","):
        key, equals, value = item.partition("=")
        if not equals:
            unnamed.append([parse_head(f"{name}:{one}").values[0] for one in _divided(item, "|")])
        elif key.strip() in grid:
            raise HeadError(f"{key.strip()!r} is given twice in {text!r}: divide values by '|'")
        else:
            grid[key.strip()] = _axis_of_text(value, name, key.strip())
    if unnamed:
        grid = {**_unnamed_axis(name, "" if row is None else row.values, unnamed), **grid}
    return HeadGrid(name, tuple(grid.items()))


def _unnamed_axis(name: str, param: str, unnamed: list[list[Any]]) -> dict[str, Axis]:
    if not param:
        raise HeadError(
            f"{name!r} takes parameters by name, received {unnamed[0][0]!r}: "
            f"write '{name}:parameter={unnamed[0][0]}'"
        )
    every = [
        values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        for values in product(*unnamed)
    ]
    return {param: tuple(every)}


def _axis_of_text(text: str, name: str, key: str) -> Axis:
    alternatives = _divided(text, "|")
    ends = _RANGE.fullmatch(alternatives[0]) if len(alternatives) == 1 else None
    if ends is not None:
        low, high = _number(ends["low"]), _number(ends["high"])
        if low is None or high is None:
            raise HeadError(
                f"expected numbers at both ends of the range {text!r} of {key!r}: write, for "
                "example, 0.001..10"
            )
        return Range(low, high)
    return tuple(parse_head(f"{name}:{key}={one}").params[key] for one in alternatives)


def _number(text: str) -> float | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _divided(text: str, divider: str) -> list[str]:
    """Divide a text where no bracket is open."""
    items, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == divider and depth == 0:
            items.append(text[start:place].strip())
            start = place + 1
    items.append(text[start:].strip())
    if not all(items):
        raise HeadError(
            f"nothing beside a {divider!r} in {text!r}: write a value there, or leave it out"
        )
    return items


def _checked(head: HeadGrid) -> HeadGrid:
    """Make the head with every value once, so that none is refused an hour into a search."""
    made = head.label if head.estimator is None else head.estimator
    make_head(made)
    for name, axis in head.grid:
        for value in (axis.low, axis.high) if isinstance(axis, Range) else axis:
            make_head(made, **{name: value})
    return head
