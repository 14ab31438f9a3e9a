"""Decide which shards of a space are removed or written anew; nothing is changed here."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.integrity import check_array, stated_digest
from featx.cache.inventory import list_shards, spec_digits
from featx.cache.key_index import KeyIndex
from featx.cache.rewriting import Part, row_bytes, rows_in_a_shard
from featx.cache.shard import Shard, read_shard
from featx.cache.space import SHARD_BYTES
from featx.exceptions import CacheFormatError

SMALL_BYTES = 8 << 20
"""Shards with fewer bytes of rows than this are put together."""


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that go together, and what is kept of them.

    Parameters
    ----------
    digest : str
        The specification that they state.
    old : tuple of Shard
        The shards that go.
    parts : tuple of Part
        Their rows that stay, in new shards.
    rows_repeated : int
        How many of their rows are copies of others that stay.
    """

    digest: str
    old: tuple[Shard, ...]
    parts: tuple[Part, ...]
    rows_repeated: int = 0

    @property
    def rows_gone(self) -> int:
        """Number of rows that go, the repeated ones among them."""
        return sum(map(len, self.old)) - sum(len(part.rows) for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows that go."""
        kept = sum(len(part.rows) * row_bytes(part.shard) for part in self.parts)
        return sum(len(shard) * row_bytes(shard) for shard in self.old) - kept

    @property
    def shards_written(self) -> int:
        """Number of new shards."""
        rows = sum(len(part.rows) for part in self.parts)
        return -(-rows // rows_in_a_shard(self.parts[0].shard)) if rows else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with a space.

    Parameters
    ----------
    groups : tuple of Group
        What goes; no shard is in two of them.
    rows : int
        Number of rows that stay.
    young : int
        Number of shards that were not looked at.
    damaged : dict of str to str
        Shards that stay as they are, by name, and what is wrong with them.
    """

    groups: tuple[Group, ...]
    rows: int
    young: int
    damaged: dict[str, str]


@dataclass(slots=True)
class _Entry:
    shard: Shard
    digest: str
    rows: NDArray[np.int64]
    keys: NDArray[np.uint8]
    repeats: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.rows) * row_bytes(self.shard)

    @property
    def like(self) -> tuple[object, ...]:
        """What shards have in common that can be put together."""
        taps = self.shard.taps.items()
        return (self.digest, *sorted((tap, a.dtype.str, a.shape[1]) for tap, a in taps))


def is_young(path: Path, older_than_s: float) -> bool:
    """Return whether a file was written less than `older_than_s` ago."""
    return older_than_s > 0 and time.time() - path.stat().st_mtime < older_than_s


def plan_space(
    folder: Path,
    used: NDArray[np.uint8],
    *,
    older_than_s: float,
    leave: Container[str] = (),
) -> Plan:
    """Decide what goes from a space.

    Parameters
    ----------
    folder : Path
        The space.
    used : ndarray of shape (m, 32), uint8
        Keys that datasets use.
    older_than_s : float
        Younger shards are left alone.
    leave : container of str
        Names of shards to leave alone.
    """
    index = KeyIndex([used])
    entries: list[_Entry] = []
    damaged: dict[str, str] = {}
    young = 0
    for path in list_shards(folder):
        if path.name in leave:
            continue
        try:
            if is_young(path, older_than_s):
                young += 1
                continue
            shard, digest = _open(path, folder)
            keys = shard.keys.map()
            rows = np.flatnonzero(index.find(keys)[1] >= 0)
        except FileNotFoundError:
            continue
        except CacheFormatError as error:
            damaged[path.name] = str(error)
            continue
        entries.append(_Entry(shard, digest, rows, keys[rows]))
    alike: dict[tuple[object, ...], list[_Entry]] = {}
    groups = []
    for entry in entries:
        if len(entry.rows):
            alike.setdefault(entry.like, []).append(entry)
        else:
            groups.append(Group(entry.digest, (entry.shard,), ()))
    for same in alike.values():
        groups += _group(same)
    rows_kept = sum(len(entry.rows) for entry in entries)
    return Plan(tuple(groups), rows_kept, young, damaged)


def _open(path: Path, folder: Path) -> tuple[Shard, str]:
    """Open a shard whose keys can be relied on, and return the specification that it states."""
    digest = stated_digest(path)
    if not digest.startswith(spec_digits(folder)):
        raise CacheFormatError(f"{path} holds features of another specification than its folder")
    shard = read_shard(path, digest)
    check_array(shard.keys)
    return shard, digest


def _group(entries: Sequence[_Entry]) -> Iterator[Group]:
    """Put shards together whose rows repeat each other, that are small, or that lose rows."""
    repeated = _drop_repeated(entries)
    linked = [entry for entry in entries if entry.repeats]
    if linked:
        yield _as_group(linked, repeated)
    alone = [entry for entry in entries if not entry.repeats]
    touched = [e for e in alone if len(e.rows) < len(e.shard) or e.size_bytes < SMALL_BYTES]
    # Smallest first: then at most one group stays small, and a second run finds nothing to do.
    touched.sort(key=lambda entry: (entry.size_bytes, entry.shard.path))
    waiting: list[_Entry] = []
    for entry in [*touched, None]:
        size = sum(waited.size_bytes for waited in waiting)
        if waiting and (entry is None or size + entry.size_bytes > SHARD_BYTES):
            if len(waiting) > 1 or len(waiting[0].rows) < len(waiting[0].shard):
                yield _as_group(waiting, 0)
            waiting = []
        if entry is not None:
            waiting.append(entry)


def _as_group(entries: Sequence[_Entry], repeated: int) -> Group:
    parts = tuple(Part(entry.shard, entry.rows) for entry in entries if len(entry.rows))
    old = tuple(entry.shard for entry in entries)
    return Group(entries[0].digest, old, parts, repeated)


def _drop_repeated(entries: Sequence[_Entry]) -> int:
    """Keep the first of equal keys, mark the shards that share any, and count what is dropped."""
    keys = np.concatenate([entry.keys for entry in entries])
    # Of 32 bytes each, texts are equal only where the keys are: padding is with zeros too.
    whole = np.ascontiguousarray(keys).view("S32").ravel()
    _, first, group, count = np.unique(
        whole, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(keys):
        return 0
    shared = count[group.ravel()] > 1
    keep = np.zeros(len(keys), np.bool_)
    keep[first] = True
    start = 0
    for entry in entries:
        here = slice(start, start + len(entry.rows))
        start += len(entry.rows)
        entry.repeats = bool(shared[here].any())
        entry.rows = entry.rows[keep[here]]
    return len(keys) - len(first)
