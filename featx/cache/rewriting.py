"""Write rows of some shards into new ones, after which the old ones can go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import attribute, open_checked
from featx.cache.integrity import check_shard
from featx.cache.layout import CacheLayout
from featx.cache.shard import Shard, write_shard
from featx.cache.space import SHARD_BYTES
from featx.exceptions import CacheFormatError


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a shard.

    Parameters
    ----------
    shard : Shard
        Where they are.
    rows : ndarray of shape (m,), int64
        Which, in rising order.
    """

    shard: Shard
    rows: NDArray[np.int64]


def row_bytes(shard: Shard) -> int:
    """Return how many bytes one row of a shard takes, with its key."""
    widths = (array.shape[1] * array.dtype.itemsize for array in shard.taps.values())
    return shard.keys.shape[1] + sum(widths)


def rows_in_a_shard(shard: Shard) -> int:
    """Return how many rows like those of a shard make one of the usual size."""
    return max(1, SHARD_BYTES // row_bytes(shard))


def write_parts(
    layout: CacheLayout, folder: Path, spec_digest: str, parts: Sequence[Part]
) -> list[Path]:
    """Write rows, byte for byte, into new shards of at most 24 MiB, and return their paths.

    Every byte of the sources is compared with its digest first, so that no damage gets a digest
    that vouches for it. One new shard is held in memory at a time.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    folder : Path
        The space.
    spec_digest : str
        Digest of its specification.
    parts : sequence of Part
        Of shards that have the same taps, types and widths.

    Raises
    ------
    CacheFormatError
        If a source is damaged. What was written for it is removed.
    FileNotFoundError
        If a source has gone meanwhile. What was written for it is removed.
    """
    for part in parts:
        check_shard(part.shard)
    provenance = _provenance([part.shard.path for part in parts])
    written: list[Path] = []
    try:
        for chunk in _chunks(parts):
            keys = np.concatenate([part.shard.keys.map()[part.rows] for part in chunk])
            features = {
                tap: np.concatenate([part.shard.taps[tap].map()[part.rows] for part in chunk])
                for tap in chunk[0].shard.taps
            }
            written.append(
                write_shard(
                    layout,
                    folder,
                    spec_digest=spec_digest,
                    keys=keys,
                    features=features,
                    provenance=provenance,
                )
            )
    except Exception:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    return written


def _chunks(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Cut parts into lists with as many rows as make a shard."""
    chunk: list[Part] = []
    room = limit = rows_in_a_shard(parts[0].shard) if parts else 0
    for part in parts:
        rows = part.rows
        while len(rows):
            chunk.append(Part(part.shard, rows[:room]))
            rows = rows[room:]
            room -= len(chunk[-1].rows)
            if not room:
                yield chunk
                chunk, room = [], limit
    if chunk:
        yield chunk


def _provenance(paths: Sequence[Path]) -> dict[str, Any]:
    """Return what made the rows of several shards."""
    found: list[Any] = []
    for path in paths:
        with open_checked(path, "featx-shard") as file:
            stated = json.loads(attribute(file, "provenance"))
            if not isinstance(stated, dict):
                raise CacheFormatError("the provenance is no JSON object")
        for one in stated.get("several", [stated]):
            if one not in found:
                found.append(one)
    return found[0] if len(found) == 1 else {"several": found}
