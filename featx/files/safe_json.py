"""JSON of anybody's making, and lines of JSON that tell by a checksum whether they changed.

A file that featx keeps for itself is no better than another: a disk changes bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

Json: TypeAlias = dict[str, Any]
"""JSON types by their names."""


def read_plain_json(data: bytes, *, most_bytes: int) -> dict[str, Any]:
    """Return an object of JSON as the standard has it: no NaN, no infinity, no name twice.

    What is no such object, or larger, raises ``ValueError``, nesting too deep ``RecursionError``.

    >>> read_plain_json(b'{"a": 1e999}', most_bytes=100)
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is not a finite number
    """
    if len(data) > most_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, at most {most_bytes} are read")
    record = json.loads(
        data.decode("utf-8"),
        parse_constant=_refuse_constant,
        parse_float=_finite,
        object_pairs_hook=_distinct,
    )
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, received {type(record).__name__}")  # noqa: TRY004
    return record


def json_with_checksum(record: Mapping[str, Any]) -> str:
    """Return a line of JSON that tells by itself whether a bit of it changed."""
    return json.dumps({**record, "sha256": _json_digest(record)}, allow_nan=False)


def read_json_with_checksum(data: bytes, *, most_bytes: int = 1 << 24) -> dict[str, Any]:
    """Return the record that `json_with_checksum` wrote; another one raises ``ValueError``."""
    try:
        record = read_plain_json(data, most_bytes=most_bytes)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "sha256" not in record:
        raise ValueError("it has no checksum")
    if record.pop("sha256") != _json_digest(record):
        raise ValueError("its checksum is that of another content")
    return record


def _json_digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("an object has one name twice")
    return record
