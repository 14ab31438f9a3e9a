"""Arrays as NumPy stores them, in ``.npy`` and in ``.npz``, of anybody's making; never pickled."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from featx.files.claims import UnsafeFileError, most_unpacked, shortened
from featx.files.safe_zip import open_plain_zip

_MOST_HEADER_BYTES = 10_000
_MOST_MEMBERS = 10_000
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What an array claims to be, and where in its file its data begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]
    start: int

    @property
    def data_bytes(self) -> int:
        """The size of its data."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def order(self) -> Literal["C", "F"]:
        """How its elements lie, as NumPy names it."""
        return "F" if self.fortran else "C"


def read_npy_header(file: IO[bytes], name: str) -> NpyHeader:
    """Return the header of an array; its text is bounded before it is read."""
    magic = file.read(8)
    version = np.lib.format.read_magic(io.BytesIO(magic))
    if version not in ((1, 0), (2, 0)):
        raise UnsafeFileError(
            f"{name} is an array of format version {version}: expected numbers or text"
        )
    kind = "<H" if version == (1, 0) else "<I"
    raw = file.read(struct.calcsize(kind))
    (length,) = struct.unpack(kind, raw)
    if length > _MOST_HEADER_BYTES:
        raise UnsafeFileError(f"{name} has an array with a header of {length:,} bytes: refused")
    text = file.read(length)
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read(io.BytesIO(raw + text))
    if dtype.hasobject:
        raise UnsafeFileError(
            f"{name} holds Python objects, which need pickle: refused, since a pickle can run any "
            "code; save numbers as float32 and text with np.array(values, dtype=str)"
        )
    if any(side < 0 for side in shape):
        raise UnsafeFileError(f"{name} has an array of shape {shortened(shape)}: refused")
    # A side of 0 makes no bytes, and a list of as many lists as the other sides say.
    if math.prod(max(side, 1) for side in shape) > np.iinfo(np.int64).max:
        raise UnsafeFileError(f"{name} claims to be {shortened(shape)}: refused")
    return NpyHeader(shape, fortran, dtype, len(magic) + len(raw) + length)


def read_npy(data: bytes, name: str) -> NDArray[np.generic]:
    """Return the array of numbers or text in the bytes of a ``.npy`` file."""
    header = read_npy_header(io.BytesIO(data), name)
    dtype = header.dtype
    parts = [dtype] if dtype.fields is None else [field[0] for field in dtype.fields.values()]
    if any(part.kind not in "biufUS" or part.subdtype is not None for part in parts):
        raise UnsafeFileError(f"{name} holds {shortened(dtype)}, expected numbers or text")
    count = math.prod(max(side, 1) for side in header.shape)
    if max(count, count * dtype.itemsize) > len(data):
        raise UnsafeFileError(
            f"{name} claims to be {shortened(header.shape)} of {shortened(dtype)}, which "
            f"{len(data)} bytes cannot hold"
        )
    values = np.frombuffer(data, dtype, math.prod(header.shape), header.start)
    return values.reshape(header.shape, order=header.order).copy(order="K")


def map_npy(path: Path) -> NDArray[np.generic]:
    """Return the array of a ``.npy`` file, mapped from it."""
    with path.open("rb") as file:
        header = read_npy_header(file, "the array")
    held = path.stat().st_size - header.start
    if header.data_bytes > held:
        raise UnsafeFileError(
            f"the array claims {header.data_bytes:,} bytes, of which the file holds {held:,}: it "
            "was cut short"
        )
    if not header.data_bytes:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", header.start, header.shape, header.order)


class NpzFile:
    """The arrays of an open ``.npz`` file by name; none may grow by more than `most_ratio`."""

    def __init__(self, archive: zipfile.ZipFile, size: int, most_ratio: int) -> None:
        self._archive, self._size, self._most_ratio = archive, size, most_ratio
        members = archive.infolist()
        self._members = {info.filename.removesuffix(".npy"): info for info in members}
        if len(self._members) != len(members):
            raise UnsafeFileError("it has two arrays of one name: refused")
        self.names = list(self._members)

    def header(self, name: str) -> NpyHeader:
        """Return what an array is, after comparing what it claims with what the file holds."""
        info = self._members[name]
        with self._archive.open(info) as file:
            header = read_npy_header(file, repr(name))
        if header.start + header.data_bytes != info.file_size:
            raise UnsafeFileError(
                f"{name!r} claims {header.data_bytes:,} bytes, of which the file holds "
                f"{info.file_size - header.start:,}: it was cut short or changed"
            )
        stored = min(info.compress_size, self._size)
        if info.file_size > most_unpacked(stored, self._most_ratio):
            raise UnsafeFileError(
                f"{name!r} claims {info.file_size:,} bytes, of which the file holds {stored:,}: "
                "refused; save it again without compression"
            )
        return header

    def read(self, name: str, *, most_bytes: int | None = None) -> NDArray[np.generic]:
        """Return a whole array."""
        header = self.header(name)
        if most_bytes is not None and header.data_bytes > most_bytes:
            raise UnsafeFileError(
                f"{name!r} claims {header.data_bytes:,} bytes, more than the {most_bytes:,} "
                "allowed for labels, paths and the like"
            )
        # Piece by piece into memory of its own: the array can be written to, and is there once.
        buffer, end = bytearray(header.data_bytes), 0
        with self._archive.open(self._members[name]) as file:
            file.read(header.start)
            while piece := file.read(_PIECE_BYTES):
                buffer[end : end + len(piece)] = piece
                end += len(piece)
        return np.frombuffer(buffer, header.dtype).reshape(header.shape, order=header.order)

    def chunks(self, name: str, header: NpyHeader, rows: int) -> Iterator[NDArray[np.generic]]:
        """Yield about as many rows of a matrix at a time, unpacked as they are read."""
        length, *sides = header.shape
        row_bytes = math.prod(sides) * header.dtype.itemsize
        with self._archive.open(self._members[name]) as file:
            file.read(header.start)
            for start in range(0, length, rows):
                count = min(rows, length - start)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise UnsafeFileError(f"{name!r} was cut short")
                yield np.frombuffer(data, header.dtype).reshape(count, *sides)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UnsafeFileError("expected a .npz archive, received one array: name it .npy")
    return path.open("rb")


@contextmanager
def open_npz(path: Path, *, most_ratio: int) -> Iterator[NpzFile]:
    """Open a ``.npz`` file of at most 10,000 arrays, compressed to no less than 1/most_ratio."""
    with (
        _opened(path) as file,
        open_plain_zip(file, most_members=_MOST_MEMBERS, most_ratio=None) as archive,
    ):
        yield NpzFile(archive, path.stat().st_size, most_ratio)
