"""Heads as a user types them: ``name``, ``name:parameter=value,...``, ``dense:1024,1024``."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from featx.exceptions import HeadError

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"
_LONGEST = 2_000


@dataclass(frozen=True)
class HeadText:
    """A head's name, the values without a name, and the values with one."""

    name: str
    values: tuple[Any, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)


def parse_head(text: str) -> HeadText:
    """Take a head's text apart; whether such a head exists is not its business."""
    if len(text) > _LONGEST:
        raise HeadError(f"a head is at most {_LONGEST} characters, received {len(text)}")
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise HeadError(
            f"expected a head such as 'logistic' or 'logistic:C=0.1', received {text!r}: "
            "write the head's name first"
        )
    if colon and not rest.strip():
        raise HeadError(
            f"nothing after the colon in {text!r}: write {name!r}, or '{name}:parameter=value'"
        )
    values: list[Any] = []
    params: dict[str, Any] = {}
    for item in _items(rest, text) if colon else ():
        match = _KEY.fullmatch(item)
        if match is None:
            values.append(_value(item, text))
        elif match[1] in params:
            raise HeadError(f"{match[1]!r} is given twice in {text!r}: leave one out")
        else:
            params[match[1]] = _value(match[2].strip(), text)
    return HeadText(name, tuple(values), params)


def _items(rest: str, text: str) -> list[str]:
    items, depth, start = [], 0, 0
    for place, letter in enumerate(rest):
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            items.append(rest[start:place].strip())
            start = place + 1
    items.append(rest[start:].strip())
    if not all(items):
        raise HeadError(f"nothing between two commas in {text!r}: leave the extra comma out")
    return items


def _value(item: str, text: str) -> Any:
    try:
        return ast.literal_eval(item)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        if _NAME.fullmatch(item):
            return item
    raise HeadError(
        f"cannot read {item!r} in {text!r}: expected a number, None, True, False, a word or a "
        "tuple such as (256, 128)"
    )
