"""A packed file as ``.npz``: arrays that NumPy reads without pickle.

Members: ``X`` (n, d), ``keys`` (n, 32) uint8, ``paths`` (n,) text, ``y`` (n,) int32 codes of
``classes`` (k,) text, ``groups`` and ``splits`` where there are any, and the scalars ``dataset``,
``backbone``, ``tap`` and ``spec`` (JSON), ``type`` and ``version``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.pack_content import PackContent

_TEXT_ROWS = 65536


def write_packed_npz(path: Path, content: PackContent) -> None:
    """Write the content chunk by chunk, without compression."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        shape = (len(content), content.width)
        _write_member(archive, "X", shape, content.dtype, content.chunks())
        _write_whole(archive, "keys", content.keys)
        if content.classes is not None:
            _write_whole(archive, "y", np.asarray(content.labels, "<i4"))
            _write_text(archive, "classes", content.classes)
        for name, column in content.texts().items():
            _write_text(archive, name, column)
        for name, text in {"type": "featx-pack", **content.facts()}.items():
            _write_whole(archive, name, np.array(text))
        _write_whole(archive, "version", np.array(1, "<i8"))


def _write_text(archive: zipfile.ZipFile, name: str, values: Sequence[str]) -> None:
    dtype = np.dtype(f"<U{max(map(len, values), default=0) or 1}")

    def chunks() -> Iterator[NDArray[Any]]:
        for start in range(0, len(values), _TEXT_ROWS):
            yield np.array(values[start : start + _TEXT_ROWS], dtype)

    _write_member(archive, name, (len(values),), dtype, chunks())


def _write_whole(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    _write_member(archive, name, values.shape, values.dtype, [np.ascontiguousarray(values)])


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: Iterable[NDArray[Any]],
) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    # Its size is not known to be small beforehand, so the long form of the entry is needed.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for values in chunks:
            member.write(values.tobytes())
