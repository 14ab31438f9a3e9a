"""A packed file as Parquet: one row an input, its features a list of fixed size.

Columns: ``path``, ``label``, ``split``, ``group`` (text, null for none), ``key`` (hexadecimal) and
``feature``; the metadata of the schema hold ``dataset``, ``backbone``, ``tap``, ``spec`` (JSON) and
``classes`` (JSON) under names that begin with ``featx.``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featx.cache.pack_content import PackContent, valid_text
from featx.exceptions import MissingExtraError


def write_packed_parquet(path: Path, content: PackContent) -> None:
    """Write the content, one row group a chunk.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", extra="parquet", purpose="writing Parquet") from error

    facts = {"type": "featx-pack", "version": "1", **content.facts()}
    facts["classes"] = json.dumps(content.classes)
    kinds = {"float32": pa.float32(), "float16": pa.float16()}
    text = ("path", "label", "split", "group", "key")
    fields = [pa.field(name, pa.string()) for name in text]
    fields.append(pa.field("feature", pa.list_(kinds[content.spec.dtype], content.width)))
    schema = pa.schema(fields, {f"featx.{name}": value for name, value in facts.items()})
    names = [*map(valid_text, content.classes or ()), None]
    # Features hardly compress, and readers map what is not compressed.
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        end = 0
        for values in content.chunks():
            rows = slice(end, end + len(values))
            end += len(values)
            columns: list[Any] = [
                [valid_text(name) for name in content.paths[rows]],
                [names[code] for code in content.labels[rows].tolist()],
                _nullable(content.splits, rows, len(values)),
                _nullable(content.groups, rows, len(values)),
                [key.tobytes().hex() for key in content.keys[rows]],
            ]
            arrays = [pa.array(column, pa.string()) for column in columns]
            flat = pa.array(values.reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, content.width))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _nullable(column: Any, rows: slice, count: int) -> list[str | None]:
    if column is None:
        return [None] * count
    return [valid_text(value) or None for value in column[rows]]
