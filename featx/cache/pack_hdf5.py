"""A packed file in HDF5: type ``featx-pack``, version 1.

Layout::

    /            type "featx-pack", version, dataset, backbone, tap, spec (JSON)
    /X           (n, d) float32 or float16, type "featx-features"
    /y           (n,) int32 codes of classes, -1 for none, type "featx-array"; only with /classes
    /classes     (k,) text, type "featx-text"
    /paths       (n,) text; likewise /groups and /splits, where there are any
    /keys        (n, 32) uint8, type "featx-keys"

All arrays are contiguous, uncompressed, and carry ``sha256``; text is UTF-8 of a fixed length, which
every HDF5 tool reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import create, tag, write_array
from featx.cache.pack_content import PackContent

__all__ = ["write_packed_hdf5"]

_KIND = "featx-pack"
_TEXT_ROWS = 65536


def write_packed_hdf5(path: Path, content: PackContent) -> None:
    """Write the content chunk by chunk."""
    import h5py

    with create(path) as file:
        tag(file, _KIND)
        for name, text in content.facts().items():
            data = text.encode("utf-8", "surrogateescape")
            file.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", len(data)))
        shape = (len(content), content.width)
        chunks = ((start, values) for start, values in content.chunks())
        _write_chunks(file, "X", shape, content.dtype, chunks, "featx-features")
        write_array(file, "keys", content.keys, "featx-keys")
        if content.classes is not None:
            write_array(file, "y", np.asarray(content.labels, "<i4"), "featx-array")
            _write_text(file, "classes", content.classes)
        for name, column in content.texts().items():
            _write_text(file, name, column)


def _write_text(file: Any, name: str, values: Sequence[str]) -> None:
    import h5py

    length = max((len(_encoded(value)) for value in values), default=0) or 1
    stored = h5py.string_dtype("utf-8", length)

    def chunks() -> Iterator[tuple[int, NDArray[Any]]]:
        for start in range(0, len(values), _TEXT_ROWS):
            part = [_encoded(value) for value in values[start : start + _TEXT_ROWS]]
            yield start, np.array(part, stored)

    _write_chunks(file, name, (len(values),), stored, chunks(), "featx-text")


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _write_chunks(
    file: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: Iterator[tuple[int, NDArray[Any]]],
    kind: str,
) -> None:
    dataset = file.create_dataset(name, shape, dtype, track_times=False)
    digest = hashlib.sha256()
    for start, values in chunks:
        dataset[start : start + len(values)] = values
        digest.update(np.ascontiguousarray(values).data)
    tag(dataset, kind)
    dataset.attrs["sha256"] = np.bytes_(digest.hexdigest())
