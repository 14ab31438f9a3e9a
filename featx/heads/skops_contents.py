"""What a skops file is made of, looked at without skops: its members, arrays and types."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from featx.plain_files import open_plain_zip, read_plain_json, require_whole_array

__all__ = ["check_contents", "read_schema"]

SCHEMA = "schema.json"
_MOST_MEMBERS = 200_000
_MOST_SCHEMA_BYTES = 64 << 20
_MOST_COPIES = 4


def read_schema(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Read the description of the objects in a skops file."""
    member = archive.getinfo(SCHEMA)
    if member.file_size > _MOST_SCHEMA_BYTES:
        raise ValueError(f"{SCHEMA} has {member.file_size} bytes")
    return read_plain_json(archive.read(SCHEMA), most_bytes=_MOST_SCHEMA_BYTES)


def check_contents(data: bytes) -> set[str]:
    """Refuse a skops file that could cost more than its own size, and say which types it names.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    types : set of str
        Import paths of all classes and functions that the file names.

    Raises
    ------
    ValueError, KeyError, zipfile.BadZipFile, RecursionError
        It is no skops file that featx writes: compressed, with other members than JSON and
        arrays, with arrays larger than their members, or many references to one array.
    """
    with open_plain_zip(io.BytesIO(data), most_members=_MOST_MEMBERS) as archive:
        for member in archive.infolist():
            if member.filename == SCHEMA:
                continue
            if not member.filename.endswith(".npy") or "/" in member.filename:
                raise ValueError(f"{member.filename!r} is no member that featx writes")
            with archive.open(member) as file:
                require_whole_array(file, member.file_size, member.filename)
        types, files = set(), set()
        for node in _nodes(read_schema(archive)):
            types.add(f"{node['__module__']}.{node['__class__']}")
            if isinstance(node.get("file"), str):
                files.add((node.get("__id__"), node["file"]))
        # Each of several objects has a copy of its own, also where they name one member.
        if sum(archive.getinfo(name).file_size for _, name in files) > _MOST_COPIES * len(data):
            raise ValueError("many objects share one array")
    return types


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "__class__" in value and "__module__" in value:
                yield value
            waiting.extend(v for v in value.values() if isinstance(v, dict | list))
        elif isinstance(value, list):
            waiting.extend(v for v in value if isinstance(v, dict | list))
