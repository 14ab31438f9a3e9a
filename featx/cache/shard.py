"""A shard: an immutable HDF5 file with the features of some keys.

Layout, version 1::

    /            type "featx-shard", version, spec (digest), provenance (JSON)
    /key         (n, 32) uint8, the SHA-256 of each image file
    /features    group, type "featx-taps"
        <tap>    (n, d) float32 or float16, contiguous and uncompressed
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from featx.cache.layout import CacheLayout, publish
from featx.exceptions import CacheFormatError

KEY_BYTES = 32
_KIND = "featx-shard"


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that was opened and checked.

    Parameters
    ----------
    path : Path
        The file.
    keys : Array
        Where the keys lie, shape (n, 32) uint8.
    taps : dict of str to Array
        Where the features lie, shape (n, d), by tap.
    """

    path: Path
    keys: Array
    taps: dict[str, Array]

    def __len__(self) -> int:
        return self.keys.shape[0]


def write_shard(
    layout: CacheLayout,
    folder: Path,
    *,
    spec_digest: str,
    keys: NDArray[np.uint8],
    features: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
) -> Path:
    """Write a shard under a name of its own and return its path.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    folder : Path
        The folder of the space.
    spec_digest : str
        Digest of the space's specification.
    keys : ndarray of shape (n, 32), uint8
        Keys of the rows.
    features : mapping of str to ndarray of shape (n, d)
        Features by tap.
    provenance : mapping
        What made them; stored as JSON, no part of their identity.
    """
    path = folder / "shards" / f"{secrets.token_hex(16)}.h5"

    def write(temporary: Path) -> None:
        with create(temporary) as file:
            tag(file, _KIND)
            file.attrs["spec"] = np.bytes_(spec_digest)
            file.attrs["provenance"] = np.bytes_(json.dumps(dict(provenance), sort_keys=True))
            write_array(file, "key", keys, "featx-keys")
            group = file.create_group("features")
            tag(group, "featx-taps")
            for name, values in features.items():
                write_array(group, name, values, "featx-features")

    publish(layout, path, write)
    return path


def read_shard(path: Path, spec_digest: str) -> Shard:
    """Open a shard, check its structure, and return where its rows lie.

    Raises
    ------
    CacheFormatError
        If it is damaged, foreign, unsafe, or holds features of another specification.
    """
    with open_checked(path, _KIND) as file:
        stated = attribute(file, "spec")
        if stated != spec_digest:
            raise CacheFormatError(
                f"expected features of specification {spec_digest[:12]}, received {stated[:12]}"
            )
        keys = find_array(file, "key", "featx-keys", ndim=2, dtypes=("|u1",))
        if keys.shape[1] != KEY_BYTES:
            raise CacheFormatError(f"keys have {keys.shape[1]} bytes, expected {KEY_BYTES}")
        group = find_group(file, "features", "featx-taps")
        taps = {
            name: find_array(group, name, "featx-features", ndim=2, dtypes=("<f4", "<f2"))
            for name in group
        }
        for name, array in taps.items():
            if array.shape[0] != keys.shape[0]:
                raise CacheFormatError(
                    f"{name!r} has {array.shape[0]} rows, the keys {keys.shape[0]}"
                )
    return Shard(path, keys, taps)
