"""Zip files read with bounds before anything is unpacked, and networks of Keras in them."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from typing import IO

from featx.files.claims import UnsafeFileError, most_unpacked, shortened
from featx.files.safe_hdf5 import SIGNATURE, check_whole_hdf5

_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_MOST_NAME_BYTES, _MOST_COMMENT_BYTES = 200, 0xFFFF
_UTF_8, _STREAMED, _LEVEL = 0x800, 0x008, 0x006


def open_plain_zip(
    file: IO[bytes], *, most_members: int, most_ratio: int | None = 1
) -> zipfile.ZipFile:
    """Return a zip without links, encryption and equal names; another one raises ``ValueError``.

    With a `most_ratio` above 1 its members may be compressed, together to no less than that; with
    None each one is the caller's to check. What is no zip raises ``zipfile.BadZipFile``.
    """
    size = file.seek(0, 2)
    members, bytes_of_list = _end_record(file, size)
    # `zipfile` would read the whole list, however long, into objects of half a kilobyte.
    if members > most_members or bytes_of_list > members * (46 + _MOST_NAME_BYTES):
        raise UnsafeFileError(f"it has {members:,} members in a list of {bytes_of_list:,} bytes")
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    if len({info.filename for info in infos}) != len(infos):
        raise UnsafeFileError("several members have one name")
    packed = most_ratio != 1
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if packed else (zipfile.ZIP_STORED,)
    flags = _UTF_8 | _STREAMED | _LEVEL if packed else _UTF_8
    for info in infos:
        name, mode = shortened(info.filename), stat.S_IFMT(info.external_attr >> 16)
        if info.compress_type not in methods:
            raise UnsafeFileError("it is compressed, which featx never writes")
        if info.flag_bits & ~flags:
            raise UnsafeFileError(f"{name!r} is encrypted, patched or streamed")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
            raise UnsafeFileError(f"{name!r} is a link")
    claimed = sum(info.file_size for info in infos)
    if most_ratio is not None and claimed > most_unpacked(size, most_ratio):
        raise UnsafeFileError(
            f"its members claim to be larger than the file: {claimed:,} bytes in {size:,}"
        )
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


def count_members(file: IO[bytes]) -> int:
    """Return how many members a zip of anybody's making says it has, with a comment or without."""
    size = file.seek(0, 2)
    before = min(size, _END_BYTES + _MOST_COMMENT_BYTES + _LOCATOR_BYTES + _END_64_BYTES)
    file.seek(size - before)
    tail = file.read(before)
    end, large = tail.rfind(_END), tail.rfind(_END_64)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise zipfile.BadZipFile("it has no list of its members at its end: is it cut off?")
    (members,) = struct.unpack_from("<H", tail, end + 10)
    if large >= 0 and members == 0xFFFF:
        (members,) = struct.unpack_from("<Q", tail, large + 32)
    return int(members)


MOST_RATIO = 20
"""Weights are noise: a compressed network is no smaller than this part of itself."""
MOST_MEMBERS = 10_000
_MOST_ZIPS = 2


def require_plain_network(file: IO[bytes], name: str, *, packed: bool = False) -> None:
    """Refuse a network or its weights that could cost more than they hold, or lead out of the file.

    What is unsafe raises ``ValueError``, what cannot be opened ``zipfile.BadZipFile`` or
    ``OSError``. Its name decides whether it is HDF5 or a zip, as it does for Keras.
    """
    size = file.seek(0, 2)
    _look_inside(file, name, packed, most_unpacked(size, MOST_RATIO if packed else 1), 0)


def _look_inside(file: IO[bytes], name: str, packed: bool, most_bytes: int, depth: int) -> None:
    file.seek(0)
    signature, ending = file.read(8), name.rpartition(".")[2].lower()
    is_zip = ending in ("keras", "npz", "zip") or signature.startswith(b"PK")
    if ending in ("h5", "hdf5") or (signature == SIGNATURE and not is_zip):
        check_whole_hdf5(file, most_bytes=most_bytes, packed=packed)
    elif is_zip:
        if depth == _MOST_ZIPS:
            raise UnsafeFileError("it is a zip in a zip in a zip")
        ratio = MOST_RATIO if packed else 1
        try:
            opened = open_plain_zip(file, most_members=MOST_MEMBERS, most_ratio=ratio)
        except zipfile.BadZipFile as error:
            if zipfile.is_zipfile(file):  # for those who look less closely
                raise UnsafeFileError(str(error)) from error
            raise
        with opened as archive:
            for member in archive.infolist():
                try:
                    inner = io.BytesIO(archive.read(member))
                # Damage shows as any of ten types; Keras may read the other members all the same.
                except Exception as error:
                    raise UnsafeFileError(f"{shortened(member.filename)!r} is damaged") from error
                # Bounded by the whole file: what is compressed twice may not grow twice.
                _look_inside(inner, member.filename, packed, most_bytes, depth + 1)
