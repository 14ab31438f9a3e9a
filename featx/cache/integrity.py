"""Read the bytes of a shard again, in bounded memory, and compare them with their digests."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from featx.cache.hdf5 import Array, attribute, open_checked
from featx.cache.layout import reading
from featx.cache.shard import Shard, read_shard
from featx.exceptions import CacheFormatError
from featx.files.safe_json import read_json_with_checksum

_CHUNK_BYTES = 1 << 18


def check_array(array: Array) -> None:
    """Compare the bytes of an array with the digest stated with them, and see that it is finite.

    They are read, not mapped: a sector that cannot be read is then an error, where touching a map
    would end the process.

    Raises
    ------
    CacheFormatError
        If they differ, cannot be read, or are NaN or infinite, which no extraction stores.
    """
    left = math.prod(array.shape) * array.dtype.itemsize
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(left, _CHUNK_BYTES)))
    done, bad_rows = 0, set[int]()
    with reading(array.path), array.path.open("rb") as file:
        file.seek(array.offset)
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise CacheFormatError(f"{array.name} ends early: the file was cut short")
            digest.update(buffer[:count])
            left -= count
            if array.dtype.kind == "f":
                values = np.frombuffer(buffer, array.dtype, count // array.dtype.itemsize)
                if not np.isfinite(values).all():
                    rows = (done + np.flatnonzero(~np.isfinite(values))) // array.shape[1]
                    bad_rows.update(rows.tolist())
                done += len(values)
        if digest.hexdigest() != array.sha256:
            raise CacheFormatError(
                f"the bytes of {array.name} do not have the digest stated with them"
            )
        if bad_rows:
            raise CacheFormatError(
                f"{array.name} holds NaN or infinity in {len(bad_rows):,} of {array.shape[0]:,} "
                f"rows, the first is {min(bad_rows)}"
            )


def check_shard(shard: Shard) -> None:
    """Compare the bytes of all arrays of a shard with their digests; see `check_array`."""
    for array in (shard.keys, *shard.taps.values()):
        check_array(array)


def read_verified(path: Path, spec_digest: str) -> Shard:
    """Open a shard of which every byte that is used has the digest stated with it.

    Raises
    ------
    CacheFormatError
        If it is damaged, foreign, unsafe, or holds features of another specification.
    """
    shard = read_shard(path, spec_digest)
    check_shard(shard)
    return shard


def count_damaged_lines(path: Path) -> int:
    """Return how many lines of a search's journal do not have the checksum stated with them.

    The last one may be cut short by a kill, and a journal of featx 0.1 has no checksums at all.
    """
    sound = damaged = without = 0
    with reading(path):
        lines = path.read_bytes().split(b"\n")[:-1]
    for line in filter(None, lines):
        try:
            read_json_with_checksum(line)
            sound += 1
        except ValueError as error:
            without += "no checksum" in str(error)
            damaged += 1
    return damaged if sound or damaged > without else 0


def stated_digest(path: Path) -> str:
    """Return the digest of the specification that a shard says it belongs to."""
    with open_checked(path, "featx-shard") as file:
        return str(attribute(file, "spec"))
