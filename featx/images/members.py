"""Files inside tar and zip archives, read by their position in them, from any thread or process."""

from __future__ import annotations

import lzma
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from featx.exceptions import ImageError
from featx.images.files import MAX_FILE_BYTES

TAR, ENCRYPTED, STORED, DEFLATED = -2, -1, 0, 8
"""How the bytes of a file lie in an archive; the last two are numbers of the zip format."""
_LOCAL_HEADER_BYTES = 30
_MOST_OPEN = 64


class Place(NamedTuple):
    """Where a file lies in an archive, and what the archive was like when it was listed."""

    path: str
    archive_bytes: int
    mtime_ns: int
    offset: int
    size: int
    method: int
    crc: int  # of a zip


@contextmanager
def reading_archive(name: str) -> Iterator[None]:
    """Turn what reading an archive raises into an `ImageError` with a short reason."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"no such archive: {name}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ImageError(f"{name} cannot be read: {error}") from error


class MemberReader:
    """Reads files by their places; keeps some archives open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int, int], _Archive] = OrderedDict()

    def read(self, place: Place, *, most_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return the bytes of a file; `ImageError` says in short why not."""
        name = os.path.basename(place.path)
        if place.size > most_bytes:
            raise ImageError(f"too large: {place.size:,} bytes, the limit is {most_bytes:,}")
        with reading_archive(name):
            archive = self._archive(place)
            if place.method == TAR:
                return archive.read(place.offset, place.size, name)
            data = _read_zipped(archive, place, name, most_bytes)
        if zlib.crc32(data) != place.crc:
            raise ImageError("damaged: its checksum in the archive does not match")
        return data

    def _archive(self, place: Place) -> _Archive:
        with self._lock:
            archive = self._open.pop(place[:3], None) or _Archive(*place[:3])
            self._open[place[:3]] = archive
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return archive


class _Archive:
    """An open archive, closed when nobody reads it any more."""

    def __init__(self, path: str, size: int, mtime_ns: int) -> None:
        self._lock = threading.Lock()
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        status = os.fstat(self._number)
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise ImageError(
                f"{os.path.basename(path)} has changed since it was listed: run this again"
            )

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def read(self, offset: int, size: int, name: str) -> bytes:
        """Return so many bytes from a position on."""
        pieces: list[bytes] = []
        wanted = size
        while wanted > 0 and (piece := self._piece(offset, wanted)):
            pieces.append(piece)
            offset, wanted = offset + len(piece), wanted - len(piece)
        if wanted > 0:
            raise ImageError(f"truncated: {name} ends after {size - wanted:,} of {size:,} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._number, size, offset)
        with self._lock:  # Windows has one position a file
            os.lseek(self._number, offset, os.SEEK_SET)
            return os.read(self._number, size)


def _read_zipped(archive: _Archive, place: Place, name: str, most_bytes: int) -> bytes:
    """Return a member of a zip; `zipfile` takes turns in a file and three times as long."""
    if place.method == ENCRYPTED:
        raise ImageError("encrypted in the archive")
    if place.method not in (STORED, DEFLATED):
        raise ImageError(
            f"compressed by method {place.method} in the archive: expected stored or deflated"
        )
    start = archive.read(place.offset, _LOCAL_HEADER_BYTES, name)
    if not start.startswith(b"PK\x03\x04"):
        raise ImageError("damaged: the archive has no file where it says so")
    before = sum(int.from_bytes(start[at : at + 2], "little") for at in (26, 28))
    data = archive.read(place.offset + _LOCAL_HEADER_BYTES + before, place.size, name)
    if place.method == STORED:
        return data
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(data, most_bytes)
    if unpacker.eof:
        return data
    if len(data) >= most_bytes:
        raise ImageError(f"too large: more than {most_bytes:,} bytes")
    raise ImageError("truncated in the archive")
