"""Read and write the elements of featx's HDF5 files; nothing that is read is trusted.

Every element carries a ``type`` and a ``version``. What is read is checked against them, and
against the size of the file, before any of its data is touched.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.cache.columns import Strings, Text
from featx.cache.layout import reading
from featx.exceptions import CacheFormatError
from featx.files.safe_hdf5 import contiguous_offset, hdf5_dataset, hdf5_item

if TYPE_CHECKING:
    import h5py
    from _typeshed import ReadableBuffer

Values: TypeAlias = NDArray[np.generic]
_MAX_ATTRIBUTE_BYTES = 1 << 16
_ALIGNMENT = 64
_CHUNK_BYTES = 1 << 18
_MOST_THREADS = 8
_WORTH_THREADS_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Array:
    """Where a contiguous little-endian array lies in its file, and the digest stated with it."""

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    sha256: str

    def map(self) -> NDArray[Any]:
        """Return the array mapped from the file, read-only, without copying."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        with reading(self.path):
            return np.memmap(
                self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape
            )

    def check(self) -> None:
        """Compare the bytes with their digest, and refuse NaN and infinity, in bounded memory."""
        # Read, not mapped: a bad sector is then an error, where touching a map would end the
        # process.
        left = math.prod(self.shape) * self.dtype.itemsize
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(left, _CHUNK_BYTES)))
        done, bad_rows = 0, set[int]()
        with reading(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                count = file.readinto(buffer[: min(left, len(buffer))])
                if not count:
                    raise CacheFormatError(f"{self.name} ends early: the file was cut short")
                digest.update(buffer[:count])
                left -= count
                if self.dtype.kind == "f":
                    values = np.frombuffer(buffer, self.dtype, count // self.dtype.itemsize)
                    finite = np.isfinite(values)
                    if not finite.all():
                        bad_rows.update(
                            ((done + np.flatnonzero(~finite)) // self.shape[1]).tolist()
                        )
                    done += len(values)
            if digest.hexdigest() != self.sha256:
                raise CacheFormatError(
                    f"the bytes of {self.name} do not have the digest stated with them"
                )
            if bad_rows:
                raise CacheFormatError(
                    f"{self.name} holds NaN or infinity in {len(bad_rows):,} of "
                    f"{self.shape[0]:,} rows, the first is {min(bad_rows)}"
                )


def tag(item: h5py.HLObject, kind: str, version: int = 1) -> None:
    """Write the type and the version of an element."""
    item.attrs["type"] = np.bytes_(kind)
    item.attrs["version"] = np.int64(version)


class _PatientFile(io.FileIO):
    """A file that keeps its first error to itself until HDF5 has closed it, which else crashes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0


@contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file whose arrays begin at multiples of 64 bytes."""
    import h5py

    with _PatientFile(path) as target:
        try:
            with h5py.File(
                target,
                "w",
                libver=("v108", "v110"),
                alignment_threshold=_ALIGNMENT,
                alignment_interval=_ALIGNMENT,
            ) as file:
                yield file
        finally:
            if target.error is not None:
                raise target.error


def write_array(group: h5py.Group, name: str, values: Values, kind: str) -> str:
    """Write a contiguous, uncompressed array with its type and version; return its digest."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return write_chunks(group, name, little.shape, little.dtype, [little], kind)


def write_chunks(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    chunks: Iterable[Values],
    kind: str,
) -> str:
    """Write an array as `write_array` does, one chunk of rows after the other."""
    dataset = group.create_dataset(name, shape, dtype, track_times=False)
    digest, start = hashlib.sha256(), 0
    for values in chunks:
        if values.size:
            dataset[start : start + len(values)] = values
            # As bytes: NumPy's text type has no buffer.
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        start += len(values)
    tag(dataset, kind)
    dataset.attrs["sha256"] = np.bytes_(digest.hexdigest())
    return digest.hexdigest()


def write_strings(group: h5py.Group, name: str, values: Sequence[str]) -> tuple[str, str]:
    """Write strings as their UTF-8 bytes end to end, and where each ends; return both digests."""
    text = Strings.of(values).span(0, len(values))
    column = group.create_group(name)
    tag(column, "featx-strings")
    ends = write_array(column, "ends", text.ends, "featx-array")
    return write_array(column, "bytes", text.data, "featx-array"), ends


@contextmanager
def open_checked(path: Path, kind: str, *, newest: int = 1) -> Iterator[h5py.File]:
    """Open a file of featx for reading, and check its type and version."""
    import h5py

    with reading(path), h5py.File(path, "r", locking=False) as file:
        _check_tag(file, kind, newest)
        yield file


def _check_tag(item: h5py.HLObject, kind: str, newest: int = 1) -> None:
    stated, number = attribute(item, "type"), attribute(item, "version")
    if stated != kind:
        raise CacheFormatError(f"expected {kind!r} at {item.name}, received {stated!r}")
    if not 1 <= int(number) <= newest:
        versions = "version 1" if newest == 1 else f"versions 1 to {newest}"
        raise CacheFormatError(
            f"{kind} at {item.name} has version {number}, this featx reads {versions}: "
            "upgrade featx"
        )


def attribute(item: h5py.HLObject, name: str) -> str | int:
    """Return a scalar attribute (text or a number), refusing other kinds and absurd sizes."""
    from h5py import h5a

    # The low-level calls, because opening a cache reads thousands of attributes.
    try:
        stored = h5a.open(item.id, name.encode())
    except KeyError as error:
        raise CacheFormatError(f"attribute {name!r} is missing at {item.name}") from error
    dtype = stored.dtype
    if stored.shape != () or dtype.kind not in "Si" or dtype.itemsize > _MAX_ATTRIBUTE_BYTES:
        raise CacheFormatError(f"attribute {name!r} at {item.name} is neither text nor a number")
    value = np.empty((), dtype)
    stored.read(value)
    plain = value.item()
    return plain.decode() if dtype.kind == "S" else int(plain)


def find_group(group: h5py.Group, name: str, kind: str) -> h5py.Group:
    """Return a group of the type expected, refusing links."""
    import h5py

    item = hdf5_item(group, name)
    if not isinstance(item, h5py.Group):
        raise CacheFormatError(f"expected a group at {item.name}, received {type(item).__name__}")
    _check_tag(item, kind)
    return item


def find_array(
    group: h5py.Group, name: str, kind: str, *, ndim: int, dtypes: Sequence[str]
) -> Array:
    """Check an array and return where it lies, without reading its data."""
    import h5py

    item = hdf5_dataset(group, name)
    _check_tag(item, kind)
    if item.ndim != ndim or item.dtype.str not in dtypes:
        raise CacheFormatError(
            f"expected {ndim} dimensions of {' or '.join(dtypes)} at {item.name}, received "
            f"{item.ndim} of {item.dtype.str}"
        )
    offset = contiguous_offset(item)
    stated = attribute(item, "sha256")
    path = Path(os.fsdecode(h5py.h5i.get_file_id(item.id).name))
    return Array(path, item.name, offset, tuple(item.shape), item.dtype, str(stated))


def find_strings(group: h5py.Group, name: str) -> tuple[Array, Array]:
    """Return where the bytes of a column of strings lie, and where each one ends."""
    column = find_group(group, name, "featx-strings")
    text = find_array(column, "bytes", "featx-array", ndim=1, dtypes=("|u1",))
    return text, find_array(column, "ends", "featx-array", ndim=1, dtypes=("<i8",))


def read_array(group: h5py.Group, name: str, *, dtype: str, ndim: int = 1) -> Values:
    """Read a small array and check its digest."""
    array = find_array(group, name, "featx-array", ndim=ndim, dtypes=(dtype,))
    mapped = MappedFile(group.file)
    mapped.check([array])
    values: Values = mapped.array(array).copy()
    return values


def read_strings(group: h5py.Group, name: str) -> list[str]:
    """Read a short column of strings."""
    arrays = find_strings(group, name)
    mapped = MappedFile(group.file)
    mapped.check(arrays)
    return list(mapped.strings(*arrays))


class MappedFile:
    """The arrays of an open file, which stay what they are when its name stands for another one."""

    def __init__(self, file: h5py.File) -> None:
        self._descriptor = file.id.get_vfd_handle()
        mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(mapped, np.uint8)

    def array(self, array: Array) -> NDArray[Any]:
        """Return an array, read-only, without copying."""
        size = math.prod(array.shape) * array.dtype.itemsize
        data = self._bytes[array.offset : array.offset + size]
        return data.view(array.dtype).reshape(array.shape)

    def strings(self, text: Array, ends: Array) -> Strings:
        """Return a column of strings, whose ends have to be in order and within the bytes."""
        data, stops = self.array(text), self.array(ends)
        last = 0
        for start in range(0, len(stops), _CHUNK_BYTES):
            part = stops[start : start + _CHUNK_BYTES]
            if part[0] < last or (part[1:] < part[:-1]).any():
                last = -1
                break
            last = int(part[-1])
        if last != len(data):
            raise CacheFormatError(f"the strings of {text.name} do not fit their ends")
        return Strings([Text(data, stops, (text.sha256, ends.sha256))])

    def check(self, arrays: Iterable[Array]) -> None:
        """Compare arrays with their digests, on several processors where there is much to read."""
        arrays = list(arrays)
        sizes = [math.prod(array.shape) * array.dtype.itemsize for array in arrays]
        if sum(sizes) < _WORTH_THREADS_BYTES:
            for array, size in zip(arrays, sizes, strict=True):
                self._check(array, size)
            return
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            list(pool.map(self._check, arrays, sizes))

    def _check(self, array: Array, size: int) -> None:
        # Read, not mapped, as in `Array.check`, and by the descriptor: while the file is open.
        digest = hashlib.sha256()
        for start in range(array.offset, array.offset + size, _CHUNK_BYTES):
            left = array.offset + size - start
            digest.update(os.pread(self._descriptor, min(left, _CHUNK_BYTES), start))
        if digest.hexdigest() != array.sha256:
            raise CacheFormatError(
                f"the bytes of {array.name} do not have the digest stated with them"
            )
