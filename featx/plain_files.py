"""Zip, JSON, arrays and HDF5 of anybody's making, refused before they cost anything.

A file that featx keeps for itself is no better: a disk changes bits. Its JSON has a checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import stat
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_MOST_NAME_BYTES = 200
_UTF_8, _STREAMED, _LEVEL = 0x800, 0x008, 0x006
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HARMLESS_BYTES, _MOST_RATIO = 64 << 20, 20
_MOST_ZIPS = 2
_MOST_NETWORK_MEMBERS = 10_000
_MOST_SHOWN = 80


def open_plain_zip(file: IO[bytes], *, most_members: int, packed: bool = False) -> zipfile.ZipFile:
    """Open a zip of plain, stored members; anything else a zip can hold is refused.

    Parameters
    ----------
    file : binary file
        Seekable.
    most_members : int
        More are refused before the list of them is read.
    packed : bool, default False
        Whether members may be compressed, to no less than `most_unpacked` says.

    Returns
    -------
    archive : zipfile.ZipFile
        No member is encrypted or a link; none has the name of another, and together they claim no
        more bytes than the file has, or may have.

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
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if packed else (zipfile.ZIP_STORED,)
    flags = _UTF_8 | _STREAMED | _LEVEL if packed else _UTF_8
    for member in found:
        if member.compress_type not in kinds:
            raise ValueError("it is compressed, which featx never writes")
        name, mode = shortened(member.filename), stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & ~flags:
            raise ValueError(f"{name!r} is encrypted, patched or streamed")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
            raise ValueError(f"{name!r} is a link")
    claimed = sum(member.file_size for member in found)
    if claimed > (most_unpacked(size) if packed else size):
        raise ValueError(
            f"its members claim to be larger than the file: {claimed:,} bytes in {size:,}"
        )
    return archive


def most_unpacked(size: int) -> int:
    """Return how many bytes a compressed file of this size may become: 64 MiB and 20 times it."""
    return _HARMLESS_BYTES + _MOST_RATIO * size


def require_plain_network(file: IO[bytes], name: str, *, packed: bool = False) -> None:
    """Refuse a network or its weights, as Keras saves them, that could cost more than they hold.

    Parameters
    ----------
    file : binary file
        HDF5, or a zip of HDF5 and JSON. A zip in a zip is looked at likewise.
    name : str
        Of the file; Keras goes by its ending.
    packed : bool, default False
        Whether it may be compressed, see `most_unpacked`.

    Raises
    ------
    ValueError
        It is compressed all the same, claims more than it may, or leads out of itself.
    zipfile.BadZipFile, OSError
        It cannot be opened at all.

    Notes
    -----
    What a network's configuration asks for is not looked at: Keras makes the layers that it names.
    """
    _look_inside(file, name, packed, file.seek(0, 2), 0)


def _look_inside(file: IO[bytes], name: str, packed: bool, size: int, depth: int) -> None:
    file.seek(0)
    mark, ending = file.read(8), name.rpartition(".")[2].lower()
    is_zip = ending in ("keras", "npz", "zip") or mark.startswith(b"PK")
    if ending in ("h5", "hdf5") or (mark == _HDF5 and not is_zip):
        _require_plain_hdf5(file, packed, size)
    elif is_zip:
        if depth == _MOST_ZIPS:
            raise ValueError("it is a zip in a zip in a zip")
        try:
            opened = open_plain_zip(file, most_members=_MOST_NETWORK_MEMBERS, packed=packed)
        except zipfile.BadZipFile as error:
            if zipfile.is_zipfile(file):  # for those who look less closely
                raise ValueError(str(error)) from error
            raise
        with opened as archive:
            for member in archive.infolist():
                try:
                    inner = io.BytesIO(archive.read(member))
                # Damage shows as any of ten types; Keras may read the other members all the same.
                except Exception as error:
                    raise ValueError(f"{shortened(member.filename)!r} is damaged") from error
                # Bounded by the whole file: what is compressed twice may not grow twice.
                _look_inside(inner, member.filename, packed, size, depth + 1)


def _require_plain_hdf5(file: IO[bytes], packed: bool, size: int) -> None:
    """Refuse links, arrays whose data lie elsewhere, and more of them than a size accounts for."""
    import h5py

    complaints: list[str] = []
    claimed = 0

    def look_at_link(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            complaints.append(f"{shortened(name)!r} is a link")

    def look_at_item(name: str, item: Any) -> None:
        nonlocal claimed
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual or (item.chunks and not packed):
            complaints.append(f"{shortened(name)!r} is no array of this file alone")
        claimed += int(item.nbytes)

    with h5py.File(file, "r") as opened:
        try:
            opened.visititems_links(look_at_link)
            opened.visititems(look_at_item)
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError("its arrays cannot be listed") from error
    if claimed > (most_unpacked(size) if packed else size):
        complaints.append(f"its arrays claim {claimed:,} bytes in {size:,}")
    if complaints:
        raise ValueError(complaints[0])


def read_hdf5_array(h5: Any, name: str, shape: tuple[int, ...], dtype: str = "<f4") -> NDArray[Any]:
    """Read an array that lies plainly in an HDF5 file, after looking at all that it claims.

    Parameters
    ----------
    h5 : h5py.File
        The file.
    name : str
        Of the array.
    shape : tuple of int
        That it has to have; the caller knows that the file can hold it.
    dtype : str, default "<f4"
        Likewise.

    Raises
    ------
    ValueError
        It is a link, stored elsewhere or compressed, of another shape or type, or not finite.
    """
    import h5py
    import numpy as np

    # The link is looked at before it is followed: it could lead to any file on this machine.
    if h5.get(name, getlink=True, getclass=True) is not h5py.HardLink:
        raise ValueError(f"{name} is a link, expected a dataset")
    if h5.get(name, getclass=True) is not h5py.Dataset:
        raise ValueError(f"{name} is no dataset")
    data = h5[name]
    layout = data.id.get_create_plist()
    if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_external_count():
        raise ValueError(f"{name} is not stored contiguously in the file itself")
    expected = np.dtype(dtype)
    if data.dtype != expected or data.shape != shape:
        raise ValueError(f"{name} is {data.dtype} {data.shape}, expected {expected} {shape}")
    values = np.asarray(data[()], dtype=expected.newbyteorder("="))
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


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


def read_npy(data: bytes, name: str) -> NDArray[Any]:
    """Read an ``.npy`` file of numbers or text that claims no more than its bytes can hold.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What to call it in errors.

    Raises
    ------
    ValueError
        It is no array, one of objects, or larger than its file.
    """
    import numpy as np
    from numpy.lib import format as npy

    file = io.BytesIO(data)
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
        raise ValueError(f"{name} holds {shortened(dtype)}, expected numbers or text")
    if any(side < 0 for side in shape) or max(count, count * dtype.itemsize) > len(data):
        raise ValueError(
            f"{name} claims to be {shortened(shape)} of {shortened(dtype)}, which {len(data)} "
            "bytes cannot hold"
        )
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def shortened(value: object) -> str:
    """Return a name out of a file, cut where it is longer than an error can show."""
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
