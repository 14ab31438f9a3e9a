"""Zip and JSON of files that somebody else may have made, refused before they cost anything.

A file that featx keeps for itself is no better: a disk changes bits. Its JSON has a checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
import zipfile
from typing import IO, Any

__all__ = [
    "json_with_checksum",
    "open_plain_zip",
    "read_json_with_checksum",
    "read_plain_json",
    "require_whole_array",
]

_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_MOST_NAME_BYTES = 200
_UTF_8 = 0x800


def open_plain_zip(file: IO[bytes], *, most_members: int) -> zipfile.ZipFile:
    """Open a zip of plain, stored members; anything else a zip can hold is refused.

    Parameters
    ----------
    file : binary file
        Seekable.
    most_members : int
        More are refused before the list of them is read.

    Returns
    -------
    archive : zipfile.ZipFile
        No member is compressed, encrypted, a folder or a link; none has the name of another, and
        together they claim no more bytes than the file has.

    Raises
    ------
    ValueError
        It is another kind of zip.
    zipfile.BadZipFile
        It is none, or damaged.
    """
    size = file.seek(0, 2)
    members, bytes_of_list = _end_record(file, size)
    # `zipfile` would read the whole list, however long, into objects of half a kilobyte.
    if members > most_members or bytes_of_list > members * (46 + _MOST_NAME_BYTES):
        raise ValueError(f"it has {members} members in a list of {bytes_of_list} bytes")
    archive = zipfile.ZipFile(file)
    found = archive.infolist()
    names = [member.filename for member in found]
    if len(set(names)) != len(names):
        raise ValueError("several members have one name")
    for member in found:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, which featx never writes")
        if member.flag_bits & ~_UTF_8:
            raise ValueError(f"{member.filename!r} is encrypted, patched or streamed")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() or kind not in (0, stat.S_IFREG):
            raise ValueError(f"{member.filename!r} is a folder or a link")
    if sum(member.file_size for member in found) > size:
        raise ValueError("its members claim to be larger than the file")
    return archive


def _end_record(file: IO[bytes], size: int) -> tuple[int, int]:
    """Return the number of members and the size of their list, as `zipfile` will believe it."""
    before = min(size, _END_BYTES + _LOCATOR_BYTES + _END_64_BYTES)
    file.seek(size - before)
    tail = file.read(before)
    end = tail[-_END_BYTES:]
    # A comment may hide another list; featx writes none.
    if len(end) != _END_BYTES or not end.startswith(_END) or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end as a zip without a comment does")
    members, bytes_of_list = struct.unpack("<HI", end[10:16])
    if tail[-_END_BYTES - _LOCATOR_BYTES :].startswith(_LOCATOR):
        large = tail[: -_END_BYTES - _LOCATOR_BYTES]
        if len(large) != _END_64_BYTES or not large.startswith(_END_64):
            raise zipfile.BadZipFile("it has half of the records of a large zip")
        members, bytes_of_list = struct.unpack("<QQ", large[32:48])
    return members, bytes_of_list


def read_plain_json(data: bytes, *, most_bytes: int) -> dict[str, Any]:
    """Read an object of JSON as the standard has it: no NaN, no infinity, no name twice.

    Parameters
    ----------
    data : bytes
        UTF-8.
    most_bytes : int
        More are refused.

    Raises
    ------
    ValueError
        It is no such object.
    RecursionError
        It is nested too deeply.

    Examples
    --------
    >>> read_plain_json(b'{"a": [1, 2.5]}', most_bytes=100)
    {'a': [1, 2.5]}
    >>> read_plain_json(b'{"a": 1e999}', most_bytes=100)
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is not a finite number
    """
    if len(data) > most_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, at most {most_bytes} are read")
    found = json.loads(
        data.decode("utf-8"),
        parse_constant=_refuse_constant,
        parse_float=_finite,
        object_pairs_hook=_distinct,
    )
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, received {type(found).__name__}")  # noqa: TRY004
    return found


def json_with_checksum(record: dict[str, Any]) -> str:
    """Return a line of JSON that tells by itself whether a bit of it changed.

    Raises
    ------
    ValueError
        A number in it is not finite.

    Examples
    --------
    >>> line = json_with_checksum({"score": 0.5})
    >>> read_json_with_checksum(line.encode())
    {'score': 0.5}
    >>> read_json_with_checksum(line.replace("0.5", "0.7").encode())
    Traceback (most recent call last):
        ...
    ValueError: its checksum is that of another content
    """
    return json.dumps({**record, "sha256": _json_digest(record)}, allow_nan=False)


def read_json_with_checksum(data: bytes, *, most_bytes: int = 1 << 24) -> dict[str, Any]:
    """Return the record that `json_with_checksum` wrote.

    Raises
    ------
    ValueError
        It has no checksum, or that of another content.
    """
    try:
        record = read_plain_json(data, most_bytes=most_bytes)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "sha256" not in record:
        raise ValueError("it has no checksum")
    if record.pop("sha256") != _json_digest(record):
        raise ValueError("its checksum is that of another content")
    return record


def _json_digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one name twice")
    return found


def require_whole_array(file: IO[bytes], size: int, name: str) -> None:
    """Refuse an ``.npy`` file that is pickled, or claims more than its bytes can hold.

    Parameters
    ----------
    file : binary file
        At its beginning.
    size : int
        Bytes that it has.
    name : str
        What to call it in errors.

    Raises
    ------
    ValueError
        It is no array, one of objects, or larger than its file.
    """
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"{name} is an array of format version {version}")
    shape, _, dtype = readers[version](file)
    # A side of 0 makes no bytes, and a list of as many lists as the other sides say.
    count = math.prod(max(side, 1) for side in shape)
    parts = [dtype] if dtype.fields is None else [field[0] for field in dtype.fields.values()]
    if any(part.kind not in "biufUS" or part.subdtype is not None for part in parts):
        raise ValueError(f"{name} holds {dtype}, expected numbers or text")
    if any(side < 0 for side in shape) or max(count, count * dtype.itemsize) > size:
        raise ValueError(f"{name} claims to be {shape} of {dtype}, which {size} bytes cannot hold")
