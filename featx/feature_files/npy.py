"""Arrays as NumPy stores them: in ``.npy`` and, many of them, in ``.npz``; never with pickle."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, reason
from featx.feature_files.claims import check_claim, check_column_bytes
from featx.feature_files.names import find_names, require_features
from featx.feature_files.table import CHUNK_BYTES, ArrayRows, FeatureTable, RowSource, check_matrix

_MAX_HEADER_BYTES = 10_000
_MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(file: Path) -> FeatureTable:
    """Map a matrix from a ``.npy`` file.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds objects, or no matrix.
    """
    with _refusing(file):
        values = _map(file)
    check_matrix(values.shape, values.dtype, repr(str(file)))
    return FeatureTable(ArrayRows(values))


def read_npy_column(file: Path) -> NDArray[Any]:
    """Read a column, such as labels, from a ``.npy`` file.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds objects, or is absurdly large.
    """
    with _refusing(file):
        values = _map(file)
        check_column_bytes(values.nbytes, repr(str(file)))
        return np.array(values)


def _map(file: Path) -> NDArray[Any]:
    with file.open("rb") as opened:
        header = _read_header(opened, str(file))
        held = file.stat().st_size - header.size
    if header.data_bytes > held:
        raise DatasetError(
            f"{str(file)!r} claims {header.data_bytes:,} bytes, of which it holds {held:,}: it was "
            "cut short"
        )
    if not header.data_bytes:
        return np.empty(header.shape, header.dtype)
    order: Any = "F" if header.fortran else "C"
    return np.memmap(file, header.dtype, "r", header.size, header.shape, order)


def _read_header(opened: IO[bytes], where: str) -> _Header:
    """Read the header of an array; its text is bounded before it is read."""
    magic = opened.read(8)
    version = np.lib.format.read_magic(io.BytesIO(magic))
    if version not in ((1, 0), (2, 0)):
        raise DatasetError(f"{where} has an array of format {version}: expected numbers or text")
    kind = "<H" if version == (1, 0) else "<I"
    raw = opened.read(struct.calcsize(kind))
    (length,) = struct.unpack(kind, raw)
    if length > _MAX_HEADER_BYTES:
        raise DatasetError(f"{where} has an array with a header of {length:,} bytes: refused")
    text = opened.read(length)
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read(io.BytesIO(raw + text))
    if dtype.hasobject:
        raise DatasetError(
            f"{where} holds Python objects, which need pickle: refused, since a pickle can run any "
            "code; save numbers as float32 and text with np.array(values, dtype=str)"
        )
    if any(extent < 0 for extent in shape):
        raise DatasetError(f"{where} has an array of shape {shape}: refused")
    return _Header(shape, fortran, dtype, len(magic) + len(raw) + length)


def read_npz(file: Path) -> FeatureTable:
    """Find features and their columns in a ``.npz`` file; features are read chunk by chunk.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds objects, or no matrix.
    """
    with _refusing(file), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise DatasetError(f"{str(file)!r} has {len(members):,} arrays: refused")
        names = [info.filename.removesuffix(".npy") for info in members]
        if len(set(names)) != len(names):
            raise DatasetError(f"{str(file)!r} has two arrays of one name: refused")
        found = find_names(names)
        ranks = {} if "X" in found else {name: _member(archive, file, name) for name in names}
        matrices = [name for name, header in ranks.items() if len(header.shape) == 2]
        chosen = require_features(found, matrices, names, file)
        header = _member(archive, file, chosen)
        check_matrix(header.shape, header.dtype, f"{chosen!r} of {str(file)!r}")
        columns = {
            column: _read_column(archive, file, name)
            for column, name in found.items()
            if column != "X"
        }
        rows: RowSource
        if header.fortran:
            # Its rows do not lie together, so they cannot be read one after the other.
            rows = ArrayRows(_read_whole(archive, file, chosen))
        else:
            rows = _MemberRows(file, chosen, header)
    texts = {
        column: _as_texts(columns[column], file, column) if column in columns else None
        for column in ("classes", "paths", "groups", "splits")
    }
    return FeatureTable(rows, y=columns.get("y"), **texts)


def _member(archive: zipfile.ZipFile, file: Path, name: str) -> _Header:
    """Read the header of a member, and check what it claims."""
    where = f"{name!r} of {str(file)!r}"
    info = _info(archive, name)
    with archive.open(info) as opened:
        header = _read_header(opened, where)
    if header.size + header.data_bytes != info.file_size:
        raise DatasetError(
            f"{where} claims {header.data_bytes:,} bytes, of which the file holds "
            f"{info.file_size - header.size:,}: it was cut short or changed"
        )
    check_claim(info.file_size, min(info.compress_size, file.stat().st_size), where)
    return header


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        return archive.getinfo(name)


def _read_whole(archive: zipfile.ZipFile, file: Path, name: str) -> NDArray[Any]:
    header = _member(archive, file, name)
    with archive.open(_info(archive, name)) as opened:
        opened.read(header.size)
        values = np.frombuffer(opened.read(header.data_bytes), header.dtype)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def _read_column(archive: zipfile.ZipFile, file: Path, name: str) -> NDArray[Any]:
    check_column_bytes(_info(archive, name).file_size, f"{name!r} of {str(file)!r}")
    return _read_whole(archive, file, name)


def _as_texts(values: NDArray[Any], file: Path, column: str) -> list[str]:
    if values.ndim != 1 or values.dtype.kind not in "USiub":
        raise DatasetError(
            f"expected one text a row as {column} in {str(file)!r}, received {values.dtype} of "
            f"shape {values.shape}"
        )
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
    return [str(value) for value in values.tolist()]


@dataclass(frozen=True, slots=True)
class _MemberRows:
    """A matrix in a ``.npz`` file, unpacked as it is read."""

    file: Path
    name: str
    header: _Header

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of features a row."""
        rows, width = self.header.shape
        return rows, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.header.dtype

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield arrays of shape (m, d), from the first row on."""
        rows, width = self.shape
        row_bytes = width * self.dtype.itemsize
        step = max(1, CHUNK_BYTES // row_bytes)
        with (
            _refusing(self.file),
            zipfile.ZipFile(self.file) as archive,
            archive.open(_info(archive, self.name)) as opened,
        ):
            opened.read(self.header.size)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                data = opened.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise DatasetError(f"{self.name!r} of {str(self.file)!r} was cut short")
                yield np.frombuffer(data, self.dtype).reshape(count, width)


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn what a damaged file raises into `DatasetError` naming it."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"no such file: {str(file)!r}") from error
    except (
        OSError, EOFError, KeyError, ValueError, TypeError, SyntaxError, RuntimeError,
        NotImplementedError, RecursionError, OverflowError, struct.error, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        raise DatasetError(
            f"cannot read {str(file)!r} as arrays of NumPy, without pickle: {reason(error)}"
        ) from error
