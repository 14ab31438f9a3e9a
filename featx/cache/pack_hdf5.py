"""A packed file in HDF5: type ``featx-pack``, version 1.

Layout::

    /            type "featx-pack", version, dataset, backbone, tap, spec (JSON)
    /X           (n, d) float32 or float16, type "featx-features"
    /keys        (n, 32) uint8, type "featx-keys"
    /y           (n,) int32 codes of classes, -1 for none, type "featx-array"; only with /classes
    /classes     (k,) text, type "featx-text"
    /paths       (n,) text; likewise /groups and /splits, where there are any

All arrays are contiguous and uncompressed and carry ``sha256``; text is UTF-8 of a fixed length,
which every HDF5 tool reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import tag
from featx.cache.pack_content import PackContent

_KIND = "featx-pack"
_TEXT_ROWS = 65536
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Element:
    kind: str
    shape: tuple[int, ...]
    dtype: Any
    chunks: Callable[[], Iterable[NDArray[Any]]]


def write_packed_hdf5(path: Path, content: PackContent) -> None:
    """Write the content chunk by chunk.

    HDF5 only lays the file out; the data go into their places as plain bytes, because HDF5 1.14
    takes the process down when the disk fills up under a file that it has open.
    """
    elements = _elements(content)
    offsets = _lay_out(path, content, elements)
    digests = {}
    with path.open("r+b") as file:
        for name, element in elements.items():
            digest = hashlib.sha256()
            file.seek(offsets[name])
            for values in element.chunks():
                file.write(values.data)
                digest.update(values.data)
            digests[name] = digest.hexdigest()
    _state_digests(path, digests)


def _elements(content: PackContent) -> dict[str, _Element]:
    rows = len(content)
    out = {
        "X": _Element(
            "featx-features", (rows, content.width), content.dtype, lambda: content.chunks()
        ),
        "keys": _whole("featx-keys", content.keys),
    }
    if content.classes is not None:
        out["y"] = _whole("featx-array", np.asarray(content.labels, "<i4"))
        out["classes"] = _text(content.classes)
    return out | {name: _text(column) for name, column in content.texts().items()}


def _whole(kind: str, values: NDArray[Any]) -> _Element:
    return _Element(kind, values.shape, values.dtype, lambda: [np.ascontiguousarray(values)])


def _text(values: Sequence[str]) -> _Element:
    import h5py

    length = max((len(_encoded(value)) for value in values), default=0) or 1

    def chunks() -> Iterator[NDArray[Any]]:
        for start in range(0, len(values), _TEXT_ROWS):
            part = [_encoded(value) for value in values[start : start + _TEXT_ROWS]]
            # As bytes: buffers of NumPy's text type are not given out.
            yield np.array(part, f"S{length}").view(np.uint8)

    return _Element("featx-text", (len(values),), h5py.string_dtype("utf-8", length), chunks)


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _lay_out(path: Path, content: PackContent, elements: dict[str, _Element]) -> dict[str, int]:
    """Write all but the data, and return where the data of each element begin."""
    import h5py

    places = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    places.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    places.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(
        path,
        "w",
        libver=("v108", "v110"),
        locking=False,
        alignment_threshold=_ALIGNMENT,
        alignment_interval=_ALIGNMENT,
    ) as file:
        tag(file, _KIND)
        for name, text in content.facts().items():
            _write_text(file, name, text)
        offsets = {}
        for name, element in elements.items():
            dataset = file.create_dataset(
                name, element.shape, element.dtype, dcpl=places, track_times=False
            )
            tag(dataset, element.kind)
            dataset.attrs["sha256"] = np.bytes_("0" * 64)
            offsets[name] = int(dataset.id.get_offset() or 0)
    return offsets


def _write_text(file: Any, name: str, text: str) -> None:
    import h5py

    data = text.encode("utf-8")
    file.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))


def _state_digests(path: Path, digests: dict[str, str]) -> None:
    import h5py

    # Each digest takes the place of one as long: the file does not grow.
    with h5py.File(path, "r+", locking=False) as file:
        for name, digest in digests.items():
            file[name].attrs.modify("sha256", np.bytes_(digest))
