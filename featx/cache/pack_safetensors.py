"""A packed file as ``.safetensors``: the tensors ``X``, ``y`` and ``keys``, the rest as metadata.

The format is eight bytes with the length of a JSON header, the header, and the tensors end to end
(https://github.com/huggingface/safetensors, "Format"). It is written here, because the package
takes whole tensors, and the matrix is never whole in memory.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache.pack_content import PackContent, valid_text
from featx.exceptions import FeaturesError

# Readers refuse headers beyond this.
_MAX_HEADER_BYTES = 100_000_000
_TYPES = {"<f4": "F32", "<f2": "F16", "<i4": "I32", "|u1": "U8"}


def write_packed_safetensors(path: Path, content: PackContent) -> None:
    """Write the content chunk by chunk.

    Raises
    ------
    FeaturesError
        If the paths and other columns are too long for the header of this format.
    """
    rows = len(content)
    # Wider elements first, so that each tensor begins at a multiple of its element.
    tensors: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    if content.classes is not None:
        tensors["y"] = ((rows,), np.dtype("<i4"))
    tensors["X"] = ((rows, content.width), content.dtype)
    tensors["keys"] = ((rows, 32), np.dtype("|u1"))
    header = _header(content, tensors)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        if content.classes is not None:
            file.write(np.asarray(content.labels, "<i4").tobytes())
        for values in content.chunks():
            file.write(values.data)
        file.write(content.keys.tobytes())


def _header(
    content: PackContent, tensors: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> bytes:
    metadata = {"type": "featx-pack", "version": "1", **content.facts()}
    if content.classes is not None:
        metadata["classes"] = json.dumps([valid_text(name) for name in content.classes])
    # Readers refuse text that is not valid, as names of files may be.
    for name, column in content.texts().items():
        metadata[name] = json.dumps([valid_text(value) for value in column])
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _TYPES[dtype.str],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries).encode("ascii")
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER_BYTES:
        raise FeaturesError(
            f"the paths of {len(content):,} rows take {len(header):,} bytes, more than the "
            f"{_MAX_HEADER_BYTES:,} that safetensors allows in its header: pack as .h5, .npz or "
            ".parquet"
        )
    return header
