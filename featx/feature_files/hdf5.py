"""Features in HDF5 files of anybody's making; links out, other files and bombs are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, reason
from featx.feature_files.claims import MAX_COLUMN_BYTES, check_claim, check_column_bytes
from featx.feature_files.names import find_names, require_features
from featx.feature_files.table import CHUNK_BYTES, FeatureTable, check_matrix

_MAX_MEMBERS = 10_000
_MAX_CHUNK_BYTES = 256 << 20
_TEXT_BUDGET_BYTES = 64 << 20


def read_hdf5(file: Path) -> FeatureTable:
    """Find features and their columns in an HDF5 file; features are read chunk by chunk.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, holds no matrix, or keeps data outside itself.
    """
    with _opened(file) as opened:
        if len(opened) > _MAX_MEMBERS:
            raise DatasetError(f"{str(file)!r} has {len(opened):,} elements: refused")
        names = list(opened)
        found = find_names(names)
        matrices = [] if "X" in found else _matrices(opened, names)
        chosen = require_features(found, matrices, names, file)
        item = _dataset(opened, chosen, file)
        check_matrix(item.shape, item.dtype, f"{chosen!r} of {str(file)!r}")
        _check_storage(item, file)
        rows = _Hdf5Rows(file, chosen, tuple(item.shape), item.dtype)
        y = _column(opened, found["y"], file) if "y" in found else None
        texts = {
            column: [_text(value) for value in _column(opened, found[column], file)]
            if column in found
            else None
            for column in ("classes", "paths", "groups", "splits")
        }
    return FeatureTable(rows, y=y, **texts)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import h5py

    if not file.is_file():
        raise DatasetError(f"no such file: {str(file)!r}")
    try:
        with h5py.File(file, "r", locking=False) as opened:
            yield opened
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"cannot read {str(file)!r} as HDF5: {reason(error)}") from error


def _matrices(opened: Any, names: list[str]) -> list[str]:
    import h5py

    hard = [name for name in names if isinstance(opened.get(name, getlink=True), h5py.HardLink)]
    items = {name: opened[name] for name in hard}
    return [n for n, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim == 2]


def _dataset(opened: Any, name: str, file: Path) -> Any:
    """Return a data set whose bytes lie in this very file."""
    import h5py

    link = opened.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DatasetError(
            f"{name!r} in {str(file)!r} is a link ({type(link).__name__}), which may lead out of "
            "the file: copy the data into it"
        )
    item = opened[name]
    if not isinstance(item, h5py.Dataset):
        raise DatasetError(f"{name!r} in {str(file)!r} is a group: expected an array")
    if item.is_virtual or item.external:
        raise DatasetError(
            f"{name!r} in {str(file)!r} keeps its data in other files: copy the data into it"
        )
    return item


def _check_storage(item: Any, file: Path) -> None:
    """Check what a data set claims against what the file holds, before any of it is read."""
    import h5py

    where = f"{item.name!r} of {str(file)!r}"
    claimed = math.prod(int(extent) for extent in item.shape) * item.dtype.itemsize
    stored = min(item.id.get_storage_size(), file.stat().st_size)
    plist = item.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.CHUNKED:
        chunk_bytes = math.prod(item.chunks) * item.dtype.itemsize
        if chunk_bytes > _MAX_CHUNK_BYTES:
            raise DatasetError(f"{where} has chunks of {chunk_bytes:,} bytes: refused")
        for number in range(plist.get_nfilters()):
            code, _, _, name = plist.get_filter(number)
            if not h5py.h5z.filter_avail(code):
                raise DatasetError(
                    f"{where} is compressed by {name.decode(errors='replace') or code}, which is "
                    "not installed: save it with gzip or uncompressed"
                )
        check_claim(claimed, stored, where)
    elif claimed > stored:
        raise DatasetError(
            f"{where} claims {claimed:,} bytes, of which the file holds {stored:,}: it was cut "
            "short or never written"
        )


def _column(opened: Any, name: str, file: Path) -> list[Any]:
    import h5py

    item = _dataset(opened, name, file)
    where = f"{name!r} of {str(file)!r}"
    if item.ndim != 1 and not (item.ndim == 2 and item.shape[1] == 1):
        raise DatasetError(f"expected one value a row in {where}, received shape {item.shape}")
    text = h5py.check_string_dtype(item.dtype)
    if text is None and item.dtype.kind not in "fiubS":
        raise DatasetError(f"expected numbers or text in {where}, received {item.dtype}")
    check_column_bytes(item.size * item.dtype.itemsize, where)
    _check_storage(item, file)
    if text is None or text.length is not None:
        whole = item[()]
        _require_digest(_stated_digest(item), hashlib.sha256(whole.tobytes()), where)
        return list(np.ravel(whole).tolist())
    # Many entries may share one long text in the file: how much a slice can become is bounded.
    step = max(1, min(65536, _TEXT_BUDGET_BYTES // file.stat().st_size))
    values: list[Any] = []
    total = 0
    for start in range(0, item.shape[0], step):
        part = np.ravel(item[start : start + step]).tolist()
        total += sum(map(len, part))
        if total > MAX_COLUMN_BYTES:
            check_column_bytes(total, where)
        values += part
    return values


def _stated_digest(item: Any) -> str:
    """Return the digest that a pack of featx states with an array, empty for other files."""
    stated = item.attrs.get("sha256", b"")
    return stated.decode("ascii", "replace") if isinstance(stated, bytes) else ""


def _require_digest(stated: str, digest: Any, where: str) -> None:
    if stated and stated != digest.hexdigest():
        raise DatasetError(
            f"the bytes of {where} do not have the digest stated with them: the file was damaged "
            "or changed; take another copy, or pack the features again"
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class _Hdf5Rows:
    """A matrix in an HDF5 file."""

    file: Path
    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield arrays of shape (m, d), from the first row on."""
        rows, width = self.shape
        row_bytes = width * self.dtype.itemsize
        with _opened(self.file) as opened:
            item = _dataset(opened, self.name, self.file)
            if (tuple(item.shape), item.dtype) != (self.shape, self.dtype):
                raise DatasetError(f"{str(self.file)!r} was changed while it was read")
            step = max(1, CHUNK_BYTES // row_bytes)
            if item.chunks and item.chunks[0] * row_bytes <= _MAX_CHUNK_BYTES:
                # Whole chunks, so that none is unpacked twice.
                step = -(-step // item.chunks[0]) * item.chunks[0]
            digest, stated = hashlib.sha256(), _stated_digest(item)
            for start in range(0, rows, step):
                part = item[start : start + step]
                if stated:
                    digest.update(np.ascontiguousarray(part).data)
                yield part
            _require_digest(stated, digest, f"{self.name!r} of {str(self.file)!r}")
