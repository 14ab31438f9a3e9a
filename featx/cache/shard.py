"""A shard: an immutable HDF5 file with the features of some keys; docs/format.md has its layout."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import (
    Array,
    attribute,
    create,
    find_array,
    find_group,
    open_checked,
    tag,
    write_array,
)
from featx.cache.layout import CacheLayout, publish, reading
from featx.exceptions import CacheFormatError
from featx.files.identity import Keys

Floats: TypeAlias = NDArray[np.floating[Any]]
SHARD_BYTES = 24 << 20
_KEY_BYTES = 32
_KIND = "featx-shard"


class OtherSpecError(CacheFormatError):
    """A shard states another specification than that of its folder."""

    def __init__(self, path: Path, expected: str, stated: str) -> None:
        super().__init__(
            f"{path}: expected features of specification {expected[:12]}, received {stated[:12]}"
        )
        self.stated = stated


@dataclass(frozen=True, slots=True)
class Shard:
    """Where the keys of a shard lie, shape (n, 32), and the features of each tap, shape (n, d)."""

    path: Path
    spec_digest: str
    keys: Array
    taps: dict[str, Array]

    def __len__(self) -> int:
        return self.keys.shape[0]

    @property
    def row_bytes(self) -> int:
        """Size of one row with its key."""
        arrays = (self.keys, *self.taps.values())
        return sum(array.shape[1] * array.dtype.itemsize for array in arrays)

    @property
    def usual_rows(self) -> int:
        """How many rows like these make a shard of the usual size."""
        return max(1, SHARD_BYTES // self.row_bytes)

    def read_keys(self, rows: Sequence[int]) -> tuple[bytes, os.stat_result]:
        """Return the keys of rows that do not fall, end to end, and the state of their file."""
        # All between the first and the last are read. For a few rows this is faster than mapping.
        size = (rows[-1] - rows[0] + 1) * _KEY_BYTES
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                status = os.fstat(descriptor)
                span = os.pread(descriptor, size, self.keys.offset + rows[0] * _KEY_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            with reading(self.path):
                raise
        if len(span) != size:
            raise CacheFormatError(f"{self.path}: the keys end early: the file was cut short")
        if len(rows) > 1:
            span = np.frombuffer(span, "S32")[np.array(rows) - rows[0]].tobytes()
        return span, status

    def check(self) -> None:
        """Compare all arrays with their digests, see `Array.check`."""
        for array in (self.keys, *self.taps.values()):
            array.check()


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a shard, in rising order."""

    shard: Shard
    rows: NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        """Size of these rows with their keys."""
        return len(self.rows) * self.shard.row_bytes


def write_shard(
    layout: CacheLayout,
    folder: Path,
    *,
    spec_digest: str,
    keys: Keys,
    features: Mapping[str, NDArray[np.generic]],
    provenance: Mapping[str, object],
) -> Path:
    """Write rows of shape (n, 32) and (n, d) by tap as a shard of a space, and return its path."""
    path = new_shard(folder)

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, _KIND)
            file.attrs["spec"] = np.bytes_(spec_digest)
            file.attrs["provenance"] = np.bytes_(json.dumps(dict(provenance), sort_keys=True))
            write_array(file, "key", keys, "featx-keys")
            group = file.create_group("features")
            tag(group, "featx-taps")
            for name, values in features.items():
                write_array(group, _stored_name(name), values, "featx-features")

    publish(layout, path, write)
    return path


def _stored_name(tap: str) -> str:
    """Return a tap's name without slashes, which make a path of it in HDF5; `unquote` reads it."""
    return tap.replace("%", "%25").replace("/", "%2F")


def new_shard(folder: Path) -> Path:
    """Return a path for a shard of a space that no other writer has."""
    return folder / "shards" / f"{secrets.token_hex(16)}.h5"


def read_shard(path: Path, spec_digest: str) -> Shard:
    """Open a shard and check its structure, and that it states a digest that begins like this."""
    with open_checked(path, _KIND) as file:
        stated = str(attribute(file, "spec"))
        if not stated.startswith(spec_digest) or len(stated) != 64:
            raise OtherSpecError(path, spec_digest, stated)
        keys = find_array(file, "key", "featx-keys", ndim=2, dtypes=("|u1",))
        if keys.shape[1] != _KEY_BYTES:
            raise CacheFormatError(f"keys have {keys.shape[1]} bytes, expected {_KEY_BYTES}")
        group = find_group(file, "features", "featx-taps")
        taps = {
            unquote(name): find_array(group, name, "featx-features", ndim=2, dtypes=("<f4", "<f2"))
            for name in group
        }
        for name, array in taps.items():
            if array.shape[0] != keys.shape[0]:
                raise CacheFormatError(
                    f"{name!r} has {array.shape[0]} rows, the keys {keys.shape[0]}"
                )
    return Shard(path, stated, keys, taps)


def stated_digest(path: Path) -> str:
    """Return the digest of the specification that a shard states."""
    with open_checked(path, _KIND) as file:
        return str(attribute(file, "spec"))


def write_parts(layout: CacheLayout, folder: Path, parts: Sequence[Part]) -> list[Path]:
    """Write rows of alike shards, byte for byte, into new ones of at most 24 MiB, and return these.

    One new shard is held in memory at a time. What was written is removed after an error.
    """
    # No damage gets a digest that vouches for it.
    for part in parts:
        part.shard.check()
    provenance = _provenance([part.shard.path for part in parts])
    written: list[Path] = []
    try:
        for chunk in _chunks(parts):
            keys = np.concatenate([part.shard.keys.map()[part.rows] for part in chunk])
            features = {
                tap: np.concatenate([part.shard.taps[tap].map()[part.rows] for part in chunk])
                for tap in chunk[0].shard.taps
            }
            path = write_shard(
                layout,
                folder,
                spec_digest=chunk[0].shard.spec_digest,
                keys=keys.astype(np.uint8, copy=False),
                features=features,
                provenance=provenance,
            )
            written.append(path)
    except Exception:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    return written


def _chunks(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Cut parts into lists with as many rows as make a shard."""
    chunk: list[Part] = []
    room = limit = parts[0].shard.usual_rows if parts else 0
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


def _provenance(paths: Sequence[Path]) -> dict[str, object]:
    """Return what made the rows of several shards."""
    makers: list[dict[str, object]] = []
    for path in paths:
        with open_checked(path, _KIND) as file:
            stated = json.loads(str(attribute(file, "provenance")))
            if not isinstance(stated, dict):
                raise CacheFormatError("the provenance is not a JSON object")
        makers += [maker for maker in stated.get("several", [stated]) if maker not in makers]
    return makers[0] if len(makers) == 1 else {"several": makers}
