"""Read and write the elements of featx's HDF5 files, trusting nothing that is read.

Every element carries a ``type`` and a ``version``. What is read is checked against them, and
against the size of the file, before any of its data is touched: links out of the file, external
storage, virtual and chunked datasets, foreign types and shapes that the file cannot hold are
refused.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.layout import reading
from featx.exceptions import CacheFormatError
from featx.files.safe_hdf5 import contiguous_offset, hdf5_dataset, hdf5_item

_MAX_ATTRIBUTE_BYTES = 1 << 16
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Array:
    """Where a contiguous array lies in its file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Name in the file.
    offset : int
        First byte.
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Its type, little-endian.
    sha256 : str
        Digest of its bytes, as the writer stated it.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sha256: str

    def map(self) -> NDArray[Any]:
        """Return the array mapped from the file, read-only, without copying."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        with reading(self.path):
            return np.memmap(
                self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape
            )


def tag(item: Any, kind: str, version: int = 1) -> None:
    """Write the type and the version of an element."""
    item.attrs["type"] = np.bytes_(kind)
    item.attrs["version"] = np.int64(version)


class _PatientFile(io.FileIO):
    """A file that keeps its first error to itself until HDF5 has closed it.

    HDF5 1.14 takes the process down when a write fails under a file that it has open, as on a full
    disk.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
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
def create(path: Path) -> Iterator[Any]:
    """Create an HDF5 file whose arrays begin at multiples of 64 bytes.

    Raises
    ------
    OSError
        If it cannot be written.
    """
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


def write_array(group: Any, name: str, values: NDArray[Any], kind: str) -> None:
    """Write a contiguous, uncompressed array with its type, version and digest."""
    little = np.ascontiguousarray(values)
    little = little.astype(little.dtype.newbyteorder("<"), copy=False)
    dataset = group.create_dataset(name, data=little, track_times=False)
    tag(dataset, kind)
    dataset.attrs["sha256"] = np.bytes_(_digest(little))


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def write_strings(group: Any, name: str, values: Sequence[str]) -> None:
    """Write a column of strings: their UTF-8 bytes end to end, and where each one ends."""
    text = "".join(values).encode("utf-8", "surrogateescape")
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    if lengths.sum() != len(text):  # else all is ASCII, of which no second copy is needed
        each = (len(value.encode("utf-8", "surrogateescape")) for value in values)
        lengths = np.fromiter(each, np.int64, len(values))
    column = group.create_group(name)
    tag(column, "featx-strings")
    write_array(column, "ends", np.cumsum(lengths), "featx-array")
    write_array(column, "bytes", np.frombuffer(text, np.uint8), "featx-array")


@contextmanager
def open_checked(path: Path, kind: str, version: int = 1) -> Iterator[Any]:
    """Open a file of featx for reading, and check its type and version.

    Raises
    ------
    CacheFormatError
        If it is damaged, foreign, or of another version.
    """
    import h5py

    with reading(path), h5py.File(path, "r", locking=False) as file:
        _check_tag(file, kind, version)
        yield file


def _check_tag(item: Any, kind: str, version: int = 1) -> None:
    found, number = attribute(item, "type"), attribute(item, "version")
    if found != kind:
        raise CacheFormatError(f"expected {kind!r} at {item.name}, received {found!r}")
    if int(number) != version:
        raise CacheFormatError(
            f"{kind} at {item.name} has version {number}, this featx reads version {version}: "
            "upgrade featx"
        )


def attribute(item: Any, name: str) -> Any:
    """Return a scalar attribute (text or a number), refusing other kinds and absurd sizes."""
    from h5py import h5a

    # The low-level calls, because opening a cache reads thousands of attributes.
    try:
        stored = h5a.open(item.id, name.encode())
    except KeyError as error:
        raise CacheFormatError(f"attribute {name!r} is missing at {item.name}") from error
    dtype = stored.dtype
    if stored.shape != () or dtype.kind not in "Si" or dtype.itemsize > _MAX_ATTRIBUTE_BYTES:
        raise CacheFormatError(f"attribute {name!r} at {item.name} is no text and no number")
    value = np.empty((), dtype)
    stored.read(value)
    return value.item().decode() if dtype.kind == "S" else value.item()


def find_group(group: Any, name: str, kind: str) -> Any:
    """Return a group of the type expected, refusing links."""
    import h5py

    item = hdf5_item(group, name)
    if not isinstance(item, h5py.Group):
        raise CacheFormatError(f"expected a group at {item.name}, received {type(item).__name__}")
    _check_tag(item, kind)
    return item


def find_array(group: Any, name: str, kind: str, *, ndim: int, dtypes: Sequence[str]) -> Array:
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


def read_array(group: Any, name: str, *, dtype: str, ndim: int = 1) -> NDArray[Any]:
    """Read a small array and check its digest."""
    found = find_array(group, name, "featx-array", ndim=ndim, dtypes=(dtype,))
    # Through the open file: another one may have taken its place in the folder meanwhile.
    values: NDArray[Any] = group[name][...]
    check_digest(found, values)
    return values


def check_digest(array: Array, values: NDArray[Any]) -> None:
    """Compare an array's bytes with the digest that its writer stated."""
    if _digest(values) != array.sha256:
        raise CacheFormatError(f"the bytes of {array.name} do not have the digest stated with them")


def read_strings(group: Any, name: str) -> list[str]:
    """Read a column of strings."""
    column = find_group(group, name, "featx-strings")
    ends = read_array(column, "ends", dtype="<i8")
    text = read_array(column, "bytes", dtype="|u1").tobytes()
    bounds = np.concatenate([[0], ends])
    if (bounds[1:] < bounds[:-1]).any() or bounds[-1] != len(text):
        raise CacheFormatError(f"the strings of {column.name} do not fit their ends")
    return [
        text[start:stop].decode("utf-8", "surrogateescape")
        for start, stop in pairwise(bounds.data)  # one number at a time, unlike tolist
    ]
