"""Features in files that other tools made, with the columns beside them, read without trust.

Nothing in a file is trusted: pickles, links out of it, data in other files, and arrays that it
cannot hold are refused before they are read. Features are read chunk by chunk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from featx.exceptions import DatasetError, MissingExtraError, UnknownNameError
from featx.files.claims import UnsafeFileError, most_unpacked, reading_data
from featx.files.safe_hdf5 import check_stored, hdf5_dataset, hdf5_datasets
from featx.files.safe_npy import NpyHeader, map_npy, open_npz
from featx.images.files import AnyArray, Listing
from featx.images.tables import MOST_COLUMN_BYTES, read_label_file

if TYPE_CHECKING:
    import h5py
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

CHUNK_BYTES = 8 << 20
"""About how much is read at once."""
# Real features, even sparse ones, shrink by less than 200 times; a bomb by 1,000 and more.
_MOST_RATIO = 200
_MOST_WIDTH = 1 << 20
_MOST_CHUNK_BYTES = 256 << 20
_MOST_ELEMENTS = 10_000
_TEXT_BUDGET_BYTES = 64 << 20
_TEXT_ROWS = 65536
_NUMPY = "arrays of NumPy, without pickle"
# Names that are understood, in lower case, the first one preferred.
# fmt: off
_NAMES: Mapping[str, tuple[str, ...]] = {
    "X": ("x", "features", "feature", "embeddings", "embedding", "vectors", "data", "arr_0"),
    "y": ("y", "labels", "label", "targets", "target"),
    "classes": ("classes", "class_names"),
    "paths": ("paths", "path", "files", "filenames", "filename", "ids", "id"),
    "groups": ("groups", "group"),
    "splits": ("splits", "split"),
}
# fmt: on
_TEXTS = ("classes", "paths", "groups", "splits")
Column: TypeAlias = Sequence[object] | AnyArray


@dataclass(frozen=True, slots=True)
class RowSource:
    """A matrix (n, d) of features that can be read again and again, from the first row on."""

    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    read: Callable[[int], Iterator[AnyArray]]  # yields about as many rows at a time as it is told

    def chunks(self) -> Iterator[AnyArray]:
        """Yield arrays of shape (m, d), of about `CHUNK_BYTES`."""
        return self.read(max(1, CHUNK_BYTES // (self.shape[1] * self.dtype.itemsize)))


def rows_of_array(values: AnyArray, where: str = "X") -> RowSource:
    """Return the rows of a matrix in memory, or mapped from a file."""
    check_matrix(values.shape, values.dtype, where)

    def read(count: int) -> Iterator[AnyArray]:
        for start in range(0, len(values), count):
            yield values[start : start + count]

    return RowSource((values.shape[0], values.shape[1]), values.dtype, read)


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features with the columns that were stored beside them; None for one that is not there."""

    rows: RowSource
    y: Column | None = None  # names, or numbers, which index `classes` when there are any
    classes: list[str] | None = None
    paths: list[str] | None = None
    groups: list[str] | None = None
    splits: list[str] | None = None


def read_feature_file(
    file: str | os.PathLike[str], *, labels: str | os.PathLike[str] | None = None
) -> FeatureTable:
    """Return the content of a file, whose suffix says its format, with `labels` of another file."""
    path = Path(file).expanduser()
    reader = _FORMATS.get(path.suffix.lower())
    if reader is None:
        raise UnknownNameError("kind of feature file", path.suffix, _FORMATS)
    table = _named_classes(reader(path), path)
    if labels is None:
        return table
    return _with_labels(table, read_label_file(Path(labels).expanduser()), str(labels))


def _named_classes(table: FeatureTable, path: Path) -> FeatureTable:
    """Turn codes of classes into their names, where the file has both."""
    if table.y is None or table.classes is None:
        return table
    codes = np.asarray(table.y)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        return replace(table, classes=None)
    if codes.size and not (codes.min() >= -1 and codes.max() < len(table.classes)):
        raise DatasetError(
            f"expected labels from -1 to {len(table.classes) - 1}, which index the classes of "
            f"{str(path)!r}, received {codes.min()} to {codes.max()}"
        )
    names = [*table.classes, ""]
    return replace(table, y=[names[code] for code in codes.tolist()])


def _with_labels(table: FeatureTable, listing: Listing, name: str) -> FeatureTable:
    labels, rows = list(listing.labels or ()), table.rows.shape[0]
    order: Sequence[int] = range(rows)
    if listing.paths and table.paths is not None:
        at = {path: row for row, path in enumerate(listing.paths)}
        missing = [path for path in table.paths if path not in at]
        if missing:
            raise DatasetError(
                f"{len(missing):,} of {rows:,} rows have no label in {name!r}, the first is "
                f"{missing[0]!r}: add them with an empty label, or leave its column 'path' out to "
                "go by the order"
            )
        order = [at[path] for path in table.paths]
    elif len(labels) != rows:
        raise DatasetError(
            f"expected {rows:,} labels, one a row of the features, received {len(labels):,} in "
            f"{name!r}"
        )

    def pick(values: Sequence[str] | None, default: list[str] | None) -> list[str] | None:
        return [values[row] for row in order] if values else default

    return replace(
        table,
        y=[labels[row] for row in order],
        classes=None,
        paths=pick(listing.paths, None) if table.paths is None else table.paths,
        groups=pick(listing.groups, table.groups),
        splits=pick(listing.splits, table.splits),
    )


# What every format shares


def _find_names(present: Iterable[str]) -> dict[str, str]:
    """Return the name in the file of each column that is there."""
    by_lower = {name.lower(): name for name in present}
    return {
        column: next(by_lower[name] for name in names if name in by_lower)
        for column, names in _NAMES.items()
        if by_lower.keys() & set(names)
    }


def _take_features(names: dict[str, str], ranks: Mapping[str, int]) -> str:
    """Take out the name of the features: one that is understood, else the only matrix."""
    if "X" in names:
        return names.pop("X")
    matrices = [name for name, rank in ranks.items() if rank == 2]
    if len(matrices) == 1:
        return matrices[0]
    raise UnsafeFileError(
        "expected features under the name X, features or embeddings, found: "
        f"{', '.join(sorted(ranks)[:20]) or 'nothing'}"
    )


def check_matrix(shape: tuple[int, ...], dtype: np.dtype[np.generic], where: str) -> None:
    """Refuse what cannot be a matrix of features, by the shape and the type that it claims."""
    if dtype.kind not in "fiub":
        kind = "Python objects, which need pickle" if dtype.kind == "O" else str(dtype)
        raise DatasetError(
            f"expected features of floats in {where}, received {kind}: save them with "
            ".astype('float32')"
        )
    if len(shape) != 2:
        step = "one row an input" if len(shape) < 2 else "pool or flatten them, one row an input"
        hint = "; images are read by `featx extract`" if len(shape) in (3, 4) else ""
        raise DatasetError(
            f"expected features of shape (n, d) in {where}, received {shape}: {step}{hint}"
        )
    if 0 in shape:
        raise DatasetError(f"no features: {where} has the shape {shape}")
    if shape[1] > _MOST_WIDTH:
        raise DatasetError(
            f"expected at most {_MOST_WIDTH:,} features a row in {where}, received {shape[1]:,}"
        )


def _check_column(claimed_bytes: int, name: str) -> None:
    if claimed_bytes > MOST_COLUMN_BYTES:
        raise UnsafeFileError(
            f"{name!r} claims {claimed_bytes:,} bytes, more than the {MOST_COLUMN_BYTES:,} "
            "allowed for labels, paths and the like"
        )


def _table(rows: RowSource, columns: Mapping[str, Column]) -> FeatureTable:
    """Return features with their columns, of which all but the labels are text."""
    texts = {name: list(map(_as_text, columns[name])) for name in _TEXTS if name in columns}
    return FeatureTable(rows, y=columns.get("y"), **texts)


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


# NumPy


def _read_npy(path: Path) -> FeatureTable:
    with reading_data(path, _NUMPY):
        return FeatureTable(rows_of_array(map_npy(path), repr(str(path))))


def _read_npz(path: Path) -> FeatureTable:
    with reading_data(path, _NUMPY), open_npz(path, most_ratio=_MOST_RATIO) as npz:
        names = _find_names(npz.names)
        ranks = {} if "X" in names else {n: len(npz.header(n).shape) for n in npz.names}
        name = _take_features(names, ranks)
        header, where = npz.header(name), f"{name!r} of {str(path)!r}"
        check_matrix(header.shape, header.dtype, where)
        columns = {
            column: npz.read(stored_name, most_bytes=MOST_COLUMN_BYTES)
            for column, stored_name in names.items()
        }
        for column in columns.keys() & _TEXTS:
            values = columns[column]
            if values.ndim != 1 or values.dtype.kind not in "USiub":
                raise UnsafeFileError(
                    f"expected one text a row as {column}, received {values.dtype} of shape "
                    f"{values.shape}"
                )
        if header.fortran:
            # Its rows do not lie together, so they cannot be read one after the other.
            return _table(rows_of_array(npz.read(name), where), columns)
    rows, width = header.shape
    read = partial(_npz_rows, path, name, header)
    return _table(RowSource((rows, width), header.dtype, read), columns)


def _npz_rows(path: Path, name: str, header: NpyHeader, count: int) -> Iterator[AnyArray]:
    with reading_data(path, _NUMPY), open_npz(path, most_ratio=_MOST_RATIO) as npz:
        yield from npz.chunks(name, header, count)


# HDF5


@contextmanager
def _open_hdf5(path: Path) -> Iterator[h5py.File]:
    import h5py

    with reading_data(path, "HDF5"), h5py.File(path, "r", locking=False) as file:
        yield file


def _read_hdf5(path: Path) -> FeatureTable:
    with _open_hdf5(path) as file:
        if len(file) > _MOST_ELEMENTS:
            raise UnsafeFileError(f"it has {len(file):,} elements: refused")
        names = _find_names(file)
        ranks = dict.fromkeys(file, 0) | ({} if "X" in names else hdf5_datasets(file))
        name = _take_features(names, ranks)
        item = hdf5_dataset(file, name)
        check_matrix(item.shape, item.dtype, f"{name!r} of {str(path)!r}")
        check_stored(item, most_chunk_bytes=_MOST_CHUNK_BYTES, most_ratio=_MOST_RATIO)
        columns = {
            column: _hdf5_column(file, stored_name, path.stat().st_size)
            for column, stored_name in names.items()
        }
        shape: tuple[int, int] = tuple(item.shape)
        rows = RowSource(shape, item.dtype, partial(_hdf5_rows, path, name, shape, item.dtype))
        return _table(rows, columns)


def _hdf5_column(file: h5py.File, name: str, file_bytes: int) -> list[object]:
    import h5py

    item = hdf5_dataset(file, name)
    if item.ndim != 1 and not (item.ndim == 2 and item.shape[1] == 1):
        raise UnsafeFileError(f"expected one value a row in {name!r}, received shape {item.shape}")
    text = h5py.check_string_dtype(item.dtype)
    if text is None and item.dtype.kind not in "fiubS":
        raise UnsafeFileError(f"expected numbers or text in {name!r}, received {item.dtype}")
    _check_column(item.size * item.dtype.itemsize, name)
    check_stored(item, most_chunk_bytes=_MOST_CHUNK_BYTES, most_ratio=_MOST_RATIO)
    if text is None or text.length is not None:
        whole = item[()]
        _require_digest(item, hashlib.sha256(whole.tobytes()).hexdigest(), name)
        return list(np.ravel(whole).tolist())
    # Many entries may share one long text in the file: how much a slice can become is bounded.
    step = max(1, min(_TEXT_ROWS, _TEXT_BUDGET_BYTES // file_bytes))
    values: list[object] = []
    total = 0
    for start in range(0, item.shape[0], step):
        part = np.ravel(item[start : start + step]).tolist()
        total += sum(map(len, part))
        _check_column(total, name)
        values += part
    return values


def _hdf5_rows(
    path: Path, name: str, shape: tuple[int, int], dtype: np.dtype[np.generic], count: int
) -> Iterator[AnyArray]:
    with _open_hdf5(path) as file:
        item = hdf5_dataset(file, name)
        if (tuple(item.shape), item.dtype) != (shape, dtype):
            raise UnsafeFileError("it was changed while it was read")
        if item.chunks and item.chunks[0] * shape[1] * dtype.itemsize <= _MOST_CHUNK_BYTES:
            # Whole chunks, so that none is unpacked twice.
            count = -(-count // item.chunks[0]) * item.chunks[0]
        digest = hashlib.sha256()
        for start in range(0, shape[0], count):
            part = item[start : start + count]
            if "sha256" in item.attrs:
                digest.update(np.ascontiguousarray(part).data)
            yield part
        _require_digest(item, digest.hexdigest(), name)


def _require_digest(item: h5py.Dataset, digest: str, name: str) -> None:
    """Compare with the digest that a pack of featx states; other files state none."""
    stated = item.attrs.get("sha256", b"")
    if isinstance(stated, bytes) and stated not in (b"", digest.encode()):
        raise UnsafeFileError(
            f"the bytes of {name!r} do not have the digest stated with them: the file was damaged "
            "or changed; take another copy, or pack the features again"
        )


# Parquet


@contextmanager
def _open_parquet(path: Path, texts: Sequence[str] = ()) -> Iterator[ParquetFile]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="reading Parquet") from error
    with (
        reading_data(path, "Parquet"),
        # Equal texts stay one object, however many rows name them.
        parquet.ParquetFile(path, read_dictionary=list(texts)) as file,
    ):
        yield file


def _read_parquet(path: Path) -> FeatureTable:
    with _open_parquet(path) as file:
        schema = file.schema_arrow
        names = _find_names(schema.names)
        chosen = _take_columns(schema, names)
        dtype = _parquet_dtype(schema, chosen)
        shape = (int(file.metadata.num_rows), _parquet_width(file, chosen))
        check_matrix(shape, dtype, f"{chosen[0]!r} of {str(path)!r}")
        claimed, stored = shape[0] * shape[1] * dtype.itemsize, path.stat().st_size
        if claimed > most_unpacked(stored, _MOST_RATIO):
            raise UnsafeFileError(
                f"{chosen[0]!r} claims {claimed:,} bytes, of which the file holds {stored:,}: "
                "refused; save the features again without compression"
            )
    names.pop("classes", None)
    rows = RowSource(shape, dtype, partial(_parquet_rows, path, chosen, shape, dtype))
    return _table(rows, _parquet_columns(path, names))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind))


def _take_columns(schema: pa.Schema, names: dict[str, str]) -> list[str]:
    """Take out the column of lists, or all columns of floats that are nothing else."""
    import pyarrow as pa

    kinds = {name: schema.field(name).type for name in schema.names}
    lists = [name for name, kind in kinds.items() if _is_list(kind)]
    features = names.pop("X", None)
    if features is not None and features in lists:
        return [features]
    if len(lists) == 1:
        return lists
    known = names.values()
    floats = [n for n, kind in kinds.items() if pa.types.is_floating(kind) and n not in known]
    if lists or not floats:
        raise UnsafeFileError(
            "expected features in a column of lists named feature (or X, embedding), or in columns "
            f"of floats; found: {', '.join(schema.names[:20]) or 'none'}"
        )
    return floats


def _parquet_width(file: ParquetFile, chosen: list[str]) -> int:
    import pyarrow as pa

    kind = file.schema_arrow.field(chosen[0]).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not pa.types.is_list(kind):
        return len(chosen)
    for batch in file.iter_batches(batch_size=1, columns=chosen):
        first = batch.column(0)
        if first.null_count:
            raise UnsafeFileError(f"row 0 of {chosen[0]!r} is null")
        return len(first[0])
    return 0


def _parquet_dtype(schema: pa.Schema, chosen: list[str]) -> np.dtype[np.generic]:
    kinds = [schema.field(name).type for name in chosen]
    plain = [kind.value_type if _is_list(kind) else kind for kind in kinds]
    try:
        return np.result_type(*{np.dtype(kind.to_pandas_dtype()) for kind in plain})
    except (NotImplementedError, TypeError):
        return np.dtype(object)


def _parquet_columns(path: Path, names: Mapping[str, str]) -> dict[str, list[object]]:
    """Return small columns; equal texts are one Python object."""
    columns: dict[str, list[object]] = {column: [] for column in names}
    if not names:
        return columns
    stored_names = list(names.values())
    with _open_parquet(path, stored_names) as file:
        for batch in file.iter_batches(batch_size=_TEXT_ROWS, columns=stored_names):
            for column, name in names.items():
                values = batch.column(name)
                _check_column(values.nbytes, name)
                if hasattr(values, "dictionary"):
                    texts = values.dictionary.to_pylist()
                    indices = values.indices.to_pylist()
                    columns[column] += [None if at is None else texts[at] for at in indices]
                else:
                    columns[column] += values.to_pylist()
    return columns


def _parquet_rows(
    path: Path,
    chosen: list[str],
    shape: tuple[int, int],
    dtype: np.dtype[np.generic],
    count: int,
) -> Iterator[AnyArray]:
    read = 0
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=min(_TEXT_ROWS, count), columns=chosen):
            first = batch.column(0)
            if not _is_list(first.type):
                columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in chosen]
                values = np.stack(columns, axis=1).astype(dtype, copy=False)
            else:
                flat = first.flatten()
                if first.null_count or flat.null_count or len(flat) != len(first) * shape[1]:
                    raise UnsafeFileError(
                        f"expected {shape[1]} features in every row of {chosen[0]!r}; rows {read} "
                        f"to {read + len(first) - 1} have others or none"
                    )
                values = flat.to_numpy(zero_copy_only=False).reshape(len(first), shape[1])
            read += len(batch)
            yield values
        if read != shape[0]:
            raise UnsafeFileError(f"it claims {shape[0]:,} rows and holds {read:,}")


_FORMATS: Mapping[str, Callable[[Path], FeatureTable]] = {
    ".h5": _read_hdf5,
    ".hdf": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
