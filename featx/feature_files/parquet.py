"""Features in Parquet: a column of lists, or one column of floats a feature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DatasetError, FeatxError, MissingExtraError, reason
from featx.feature_files.claims import check_claim, check_column_bytes
from featx.feature_files.names import find_names
from featx.feature_files.table import CHUNK_BYTES, FeatureTable, check_matrix

_OTHERS = ("y", "paths", "groups", "splits")


def read_parquet(file: Path) -> FeatureTable:
    """Find features and their columns in a Parquet file; features are read chunk by chunk.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, or holds no features.
    MissingExtraError
        If pyarrow is not installed.
    """
    with _opened(file, []) as opened:
        names = opened.schema_arrow.names
        found = find_names(names)
        chosen = _feature_columns(opened.schema_arrow, found, file)
        width = _width(opened, chosen, file)
        dtype = _dtype(opened.schema_arrow, chosen)
        shape = (int(opened.metadata.num_rows), width)
        where = f"{chosen[0]!r} of {str(file)!r}"
        check_matrix(shape, dtype, where)
        check_claim(shape[0] * width * dtype.itemsize, file.stat().st_size, where)
    others = {column: found[column] for column in _OTHERS if column in found}
    read = _read_texts(file, others)
    return FeatureTable(
        _ParquetRows(file, tuple(chosen), shape, dtype),
        y=read.get("y"),
        **{
            column: None
            if column not in read
            else ["" if v is None else str(v) for v in read[column]]
            for column in ("paths", "groups", "splits")
        },
    )


@contextmanager
def _opened(file: Path, texts: list[str]) -> Iterator[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="reading Parquet") from error
    if not file.is_file():
        raise DatasetError(f"no such file: {str(file)!r}")
    try:
        # Equal texts stay one object, however many rows name them.
        with parquet.ParquetFile(file, read_dictionary=texts) as opened:
            yield opened
    except FeatxError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"cannot read {str(file)!r} as Parquet: {reason(error)}") from error


def _feature_columns(schema: Any, found: dict[str, str], file: Path) -> list[str]:
    """Return the column of lists, or all columns of floats that are nothing else."""
    import pyarrow as pa

    def is_list(name: str) -> bool:
        kind = schema.field(name).type
        return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind))

    lists = [name for name in schema.names if is_list(name)]
    if "X" in found and found["X"] in lists:
        return [found["X"]]
    if len(lists) == 1:
        return lists
    known = {name for column, name in found.items() if column != "X"}
    floats = [
        name
        for name in schema.names
        if pa.types.is_floating(schema.field(name).type) and name not in known
    ]
    if lists or not floats:
        raise DatasetError(
            f"expected features in a column of lists named feature (or X, embedding), or in "
            f"columns of floats, in {str(file)!r}; found: {', '.join(schema.names[:20]) or 'none'}"
        )
    return floats


def _width(opened: Any, chosen: list[str], file: Path) -> int:
    import pyarrow as pa

    kind = opened.schema_arrow.field(chosen[0]).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not pa.types.is_list(kind):
        return len(chosen)
    for batch in opened.iter_batches(batch_size=1, columns=chosen):
        first = batch.column(0)
        if first.null_count:
            raise DatasetError(f"row 0 of {chosen[0]!r} in {str(file)!r} is null")
        return len(first[0])
    return 0


def _dtype(schema: Any, chosen: list[str]) -> np.dtype[Any]:
    import pyarrow as pa

    kinds = [schema.field(name).type for name in chosen]
    plain = [
        kind.value_type if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) else kind
        for kind in kinds
    ]
    try:
        return np.result_type(*{np.dtype(kind.to_pandas_dtype()) for kind in plain})
    except (NotImplementedError, TypeError):
        return np.dtype(object)


def _read_texts(file: Path, others: dict[str, str]) -> dict[str, list[Any]]:
    """Read small columns; equal texts are one Python object."""
    out: dict[str, list[Any]] = {column: [] for column in others}
    if not others:
        return out
    names = list(others.values())
    with _opened(file, names) as opened:
        for batch in opened.iter_batches(batch_size=65536, columns=names):
            for column, name in others.items():
                values = batch.column(name)
                check_column_bytes(values.nbytes, f"{name!r} of {str(file)!r}")
                if hasattr(values, "dictionary"):
                    texts = values.dictionary.to_pylist()
                    out[column] += [
                        None if at is None else texts[at] for at in values.indices.to_pylist()
                    ]
                else:
                    out[column] += values.to_pylist()
    return out


@dataclass(frozen=True, slots=True)
class _ParquetRows:
    """A matrix in a Parquet file."""

    file: Path
    columns: tuple[str, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield arrays of shape (m, d), from the first row on."""
        rows, width = self.shape
        step = max(1, min(65536, CHUNK_BYTES // (width * self.dtype.itemsize)))
        read = 0
        with _opened(self.file, []) as opened:
            for batch in opened.iter_batches(batch_size=step, columns=list(self.columns)):
                read += len(batch)
                yield self._matrix(batch, read - len(batch))
        if read != rows:
            raise DatasetError(f"{str(self.file)!r} claims {rows:,} rows and holds {read:,}")

    def _matrix(self, batch: Any, start: int) -> NDArray[Any]:
        import pyarrow as pa

        first = batch.column(0)
        if pa.types.is_list(first.type) or pa.types.is_fixed_size_list(first.type):
            return self._from_lists(first, start)
        columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in self.columns]
        return np.stack(columns, axis=1).astype(self.dtype, copy=False)

    def _from_lists(self, lists: Any, start: int) -> NDArray[Any]:
        flat = lists.flatten()
        if lists.null_count or flat.null_count or len(flat) != len(lists) * self.shape[1]:
            raise DatasetError(
                f"expected {self.shape[1]} features in every row of {self.columns[0]!r} in "
                f"{str(self.file)!r}; rows {start} to {start + len(lists) - 1} have others or none"
            )
        values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
        return values.reshape(len(lists), self.shape[1])
