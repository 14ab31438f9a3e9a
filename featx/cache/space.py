"""All features of one specification: the shards of a space, read and written."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import Array
from featx.cache.key_index import KeyIndex
from featx.cache.layout import CacheLayout, list_shards, publish_bytes, reading
from featx.cache.records import CheckedShards
from featx.cache.shard import SHARD_BYTES, Floats, Shard, read_shard, write_shard
from featx.cache.stored_index import Flags, Numbers, StoredIndex, open_index, write_index
from featx.exceptions import CacheFormatError, CacheWriteError, FeaturesError
from featx.files.identity import Keys
from featx.spec import FeatureSpec

_LOG = logging.getLogger("featx")
SHARD_SECONDS = 30.0
_YOUNG_S = 3600.0
_LEAST_RUN = 64  # fewer rows are copied sooner than mapped
# An index is written when the one that there is lacks this many rows, and this share of its own.
INDEX_ROWS = 1_000_000
_LACKING_SHARE = 1 / 32
_GONE_SHARE = 1 / 4  # or when this share of its rows is gone
_ROWS_A_READING = 1 << 15  # keys that are read at once: 1 MiB


def read_spec(folder: Path) -> FeatureSpec:
    """Read the specification of a space's folder, which must be that of its name."""
    path = folder / "spec.json"
    with reading(path):
        spec = FeatureSpec.from_dict(json.loads(path.read_text("utf-8")))
    if spec.name != folder.name:
        raise CacheFormatError(
            f"{path} describes the space {spec.name!r}, but lies in {folder.name!r}: the folder "
            "was renamed or its specification replaced; move it away"
        )
    return spec


def open_space(layout: CacheLayout, name: str) -> FeatureSpace:
    """Open a space by the name of its folder."""
    folder = layout.spaces / name
    try:
        return FeatureSpace(layout, read_spec(folder))
    except FileNotFoundError as error:
        raise CacheFormatError(
            f"{folder / 'spec.json'} is missing: extract again with the backbone and options of "
            "this space, which writes it"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """The number of each key's shard and its row there, -1 for none, and the shards by number."""

    part: Numbers
    row: Numbers
    shards: dict[int, Shard]


@dataclass(frozen=True, slots=True, eq=False)
class LyingRows:
    """Rows of one shard, in rising order, and the numbers that whoever asked has for them."""

    shard: Floats  # all its rows, mapped
    rows: NDArray[np.int64]
    numbers: NDArray[np.intp]

    def batches(self) -> Iterator[tuple[Floats, NDArray[np.intp]]]:
        """Yield features and their numbers: long runs as they lie, others copied bit by bit."""
        ends = np.flatnonzero(np.diff(self.rows) != 1) + 1
        starts = np.concatenate([[0], ends])
        lengths = np.diff(np.concatenate([starts, [len(self.rows)]]))
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if length >= _LEAST_RUN:
                first = int(self.rows[start])
                yield self.shard[first : first + length], self.numbers[start : start + length]
        rest = np.flatnonzero(np.repeat(lengths < _LEAST_RUN, lengths))
        step = max(1, SHARD_BYTES // max(1, self.shard[:1].nbytes))
        for start in range(0, len(rest), step):
            some = rest[start : start + step]
            yield self.shard[self.rows[some]], self.numbers[some]


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """The index on disk, and those of its shards that were opened, by number."""

    index: StoredIndex
    shards: dict[int, Shard]


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """The shards in use: by tap, those with an index in memory, and which of the one on disk."""

    indices: dict[str, tuple[KeyIndex, tuple[Shard, ...]]]
    stored: _Stored | None
    usable: dict[str, Flags]


class _ChangedError(Exception):
    """The shards in use changed during a look-up: look again."""


class FeatureSpace:
    """Features of one specification, found by tap and key; rows of `damaged` shards are missing.

    Opening reads the keys of every shard that the index on disk does not have; the others are
    opened when they may have a row. A shard is compared with its digests before its rows are found
    for the first time, and again when its file changed.
    """

    def __init__(self, layout: CacheLayout, spec: FeatureSpec) -> None:
        self.layout = layout
        self.spec = spec
        self.folder = layout.space(spec)
        self.damaged: dict[Path, str] = {}
        self._known: dict[Path, Shard] = {}
        self._checked = CheckedShards(layout, spec.name)
        self._lock = threading.RLock()  # images are looked up beside the writer of new shards
        self._touched: set[Path] = set()
        # A writer makes the folder before the specification in it; every shard states its digest.
        if (self.folder / "spec.json").exists() and read_spec(self.folder) != spec:
            raise CacheFormatError(
                f"{self.folder} holds another specification with the same first 12 digits"
            )
        index = open_index(layout, spec.name)
        self._stored = None if index is None else _Stored(index, {})
        self._live = np.empty(0, np.bool_)  # which shards of the index on disk are in use
        self._snapshot = _Snapshot({}, None, {})
        self.refresh()
        if self.taps:
            # Lost, or damaged and removed: every shard here states that this is what it was.
            with suppress(CacheWriteError):
                self.write_spec()

    def __reduce__(self) -> tuple[type[FeatureSpace], tuple[CacheLayout, FeatureSpec]]:
        """Let a copy in another process open the folder itself."""
        return FeatureSpace, (self.layout, self.spec)

    def refresh(self) -> None:
        """Look for shards that were added or taken away."""
        with self._lock:
            vanished = False
            paths = {path.name: path for path in list_shards(self.folder)}
            indexed = self._stored.index.table.names if self._stored else []
            apart = {path.name for path in (*self._known, *self.damaged)}
            self._live = np.array([n in paths and n not in apart for n in indexed], np.bool_)
            apart.update(indexed)
            for path in [path for name, path in paths.items() if name not in apart]:
                try:
                    self._take_in(read_shard(path, self.spec.digest))
                except FileNotFoundError:
                    vanished = True  # after the listing: its rows may be in a newer shard
                except CacheFormatError as error:
                    self._leave_out(path, str(error))
            self._known = {path: s for path, s in self._known.items() if path.name in paths}
            try:
                self._rebuild()
            except FileNotFoundError:
                vanished = True
            if vanished:
                self.refresh()

    def _take_in(self, shard: Shard) -> None:
        """Hold the keys of a shard in memory, once its index is made."""
        shard.keys.check()
        self._known[shard.path] = shard

    def _leave_out(self, path: Path, reason: str) -> None:
        self.damaged[path] = reason
        self._known.pop(path, None)
        if self._stored and path.name in self._stored.index.table.names:
            self._live[self._stored.index.table.names.index(path.name)] = False
        _LOG.warning(
            "left out a damaged shard: %s. `featx extract` computes its rows again, `featx cache "
            "repair` removes it",
            reason,
        )

    def _drop_damaged(self, shards: Iterable[Shard], *, again: bool = False) -> bool:
        """Leave out those of some shards that are damaged, and return whether any is."""
        try:
            damage = self._checked.find_damage(shards, again=again)
        except FileNotFoundError:
            self.refresh()  # it was compacted away: its rows are in another one now
            return True
        with self._lock:
            for path, reason in damage.items():
                self._leave_out(path, reason)
            if damage:
                self._rebuild()
        return bool(damage)

    def _rebuild(self) -> None:
        by_tap: dict[str, list[Shard]] = {}
        for shard in self._known.values():
            for tap in shard.taps:
                by_tap.setdefault(tap, []).append(shard)
        made: dict[tuple[Path, ...], KeyIndex] = {}
        indices = {}
        for tap, having in by_tap.items():
            paths = tuple(shard.path for shard in having)
            if paths not in made:  # taps that always come together share one index
                index, before = self._snapshot.indices.get(tap, (KeyIndex(), ()))
                if tuple(having[: len(before)]) != before:
                    index, before = KeyIndex(), ()
                made[paths] = index.extended([shard.keys for shard in having[len(before) :]])
            indices[tap] = (made[paths], tuple(having))
        usable = self._stored.index.table.by_tap(self._live) if self._stored else {}
        self._snapshot = _Snapshot(indices, self._stored, usable)

    @property
    def paths(self) -> list[Path]:
        """The shards in use."""
        with self._lock:
            paths = list(self._known)
            if self._stored:
                names = self._stored.index.table.names
                live = np.flatnonzero(self._live).tolist()
                paths += [self.folder / "shards" / names[number] for number in live]
        return paths

    @property
    def rows(self) -> dict[str, int]:
        """How many rows there are of each tap."""
        snapshot = self._snapshot
        rows = {tap: len(index) for tap, (index, _) in snapshot.indices.items()}
        for tap, usable in snapshot.usable.items():
            assert snapshot.stored is not None
            more = int(snapshot.stored.index.table.rows[usable].sum())
            rows[tap] = rows.get(tap, 0) + more
        return rows

    @property
    def taps(self) -> tuple[str, ...]:
        """Taps for which there are features."""
        return tuple(sorted({*self._snapshot.indices, *self._snapshot.usable}))

    def _find(self, tap: str, keys: Keys) -> Located:
        """Return where keys lie, in shards that agree with their digests."""
        while True:
            snapshot = self._snapshot
            index, shards = snapshot.indices.get(tap, (KeyIndex(), ()))
            part, row = index.find(keys)
            having = {number: shards[number] for number in _distinct(part)}
            if self._drop_damaged(having.values()):
                continue
            left = np.flatnonzero(part < 0)
            if left.size and tap in snapshot.usable:
                assert snapshot.stored is not None
                try:
                    number, row[left] = self._find_stored(
                        snapshot.stored, snapshot.usable[tap], keys[left]
                    )
                except _ChangedError:
                    continue
                part[left] = np.where(number < 0, -1, number + len(shards))
                for shard in _distinct(number):
                    having[len(shards) + shard] = snapshot.stored.shards[shard]
            return Located(part, row, having)

    def _find_stored(self, stored: _Stored, usable: Flags, keys: Keys) -> tuple[Numbers, Numbers]:
        """Return the shard and the row of each key by the index on disk, -1 for none."""

        def is_equal(number: Numbers, row: Numbers, keys: Keys) -> Flags:
            self._open_stored(stored, _distinct(number))
            return self._compare(stored, number, row, keys)

        try:
            return stored.index.find(keys, usable, is_equal)
        except CacheFormatError:
            self._forget_index()
            raise _ChangedError from None

    def _forget_index(self) -> None:
        """Read the keys from the shards: the index on disk is damaged."""
        with self._lock:
            self._stored = None
            self.refresh()

    def _open_stored(self, stored: _Stored, numbers: list[int]) -> None:
        """Open shards of the index on disk that are not open yet."""
        names = stored.index.table.names
        for number in numbers:
            if number in stored.shards:
                continue
            path = self.folder / "shards" / names[number]
            with self._lock:
                try:
                    shard = read_shard(path, self.spec.digest)
                    if stored.index.table.describes(number, shard):
                        stored.shards[number] = shard
                        continue
                    self._take_in(shard)  # another one came under its name
                except FileNotFoundError:
                    pass  # compacted away
                except CacheFormatError as error:
                    self._leave_out(path, str(error))
                self.refresh()
            raise _ChangedError

    def _compare(self, stored: _Stored, number: Numbers, row: Numbers, keys: Keys) -> Flags:
        """Return whether rows of open shards have the keys; the shards are sound afterwards."""
        order = np.lexsort((row, number))
        number, row = number[order], row[order]
        ends = np.flatnonzero(np.diff(number) | np.diff(row // _ROWS_A_READING)) + 1
        numbers, rows = number.tolist(), row.tolist()
        spans, unchecked = [], []
        for start, stop in pairwise([0, *ends.tolist(), len(rows)]):
            shard = stored.shards[numbers[start]]
            try:
                span, status = shard.read_keys(rows[start:stop])
            except FileNotFoundError:
                self.refresh()
                raise _ChangedError from None
            except CacheFormatError as error:
                with self._lock:
                    self._leave_out(shard.path, str(error))
                    self._rebuild()
                raise _ChangedError from None
            spans.append(span)
            if not self._checked.is_sound(shard.path, status):
                unchecked.append(shard)
        # In a damaged shard rows would seem to be missing.
        if self._drop_damaged(unchecked):
            raise _ChangedError
        here = np.frombuffer(b"".join(spans), np.uint8).reshape(-1, 32)
        equal = np.empty(len(keys), np.bool_)
        equal[order] = (here == keys[order]).all(axis=1)
        return equal

    def has(self, taps: Sequence[str], keys: Keys) -> Flags:
        """Return whether all taps of each key are here and sound, shape (m,)."""
        present = np.ones(len(keys), np.bool_)
        for tap in taps:
            present &= self._find(tap, keys).row >= 0
        return present

    def recheck(self, tap: str, keys: Keys) -> None:
        """Compare the shards of keys with their digests, whatever is known of them."""
        self._drop_damaged(self._find(tap, keys).shards.values(), again=True)

    def intact(self) -> bool:
        """Return whether the shards in use are all in their places."""
        return all(path.exists() for path in self.paths)

    def touch(self, taps: Sequence[str], keys: Keys) -> None:
        """Give the shards that hold keys a new time, so that no collection removes them."""
        for tap in taps:
            for shard in self._find(tap, keys).shards.values():
                self._touch(shard.path)

    def _touch(self, path: Path) -> None:
        if path in self._touched:
            return
        try:
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                os.utime(path)
        except FileNotFoundError:
            self.refresh()
        except OSError:
            pass  # not ours to change; what is counted on is looked for again before it is promised
        else:
            self._touched.add(path)

    def gather(self, tap: str, keys: Keys) -> Floats:
        """Return the features (m, d) of keys (m, 32), mapped where they lie together in a shard."""
        try:
            return self._gather(tap, keys)
        except (FileNotFoundError, FeaturesError):
            # A shard was compacted away since it was opened; its rows are in another one now.
            self.refresh()
            return self._gather(tap, keys)

    def _gather(self, tap: str, keys: Keys) -> Floats:
        located = self._locate(tap, keys)
        part, row = located.part, located.row
        arrays = {number: shard.taps[tap] for number, shard in located.shards.items()}
        if not len(keys):
            array = self._any_array(tap)
            return np.empty((0, array.shape[1]), array.dtype)
        first = arrays[int(part[0])]
        if len(arrays) == 1:
            whole = first.map()
            together = bool((np.diff(row) == 1).all())
            rows: Floats = whole[row[0] : row[0] + len(row)] if together else whole[row]
            return rows
        out = np.empty((len(keys), first.shape[1]), first.dtype)
        for number, array in arrays.items():
            here = np.flatnonzero(part == number)
            out[here] = array.map()[row[here]]
        return out

    def _any_array(self, tap: str) -> Array:
        """Return the features of some shard that has the tap."""
        while True:
            snapshot = self._snapshot
            if tap in snapshot.indices:
                return snapshot.indices[tap][1][0].taps[tap]
            if snapshot.stored is None or tap not in snapshot.usable:
                raise FeaturesError(f"no features of tap {tap!r} in {self.spec.name}")
            with suppress(_ChangedError):
                number = int(np.argmax(snapshot.usable[tap]))
                self._open_stored(snapshot.stored, [number])
                return snapshot.stored.shards[number].taps[tap]

    def parts(self, tap: str, keys: Keys) -> list[LyingRows]:
        """Return where the features of keys (m, 32) lie, shard by shard, mapped."""
        located = self._locate(tap, keys)
        part, row = located.part, located.row
        order = np.lexsort((row, part))
        parts = []
        for numbers in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if not len(numbers):
                continue
            try:
                array = located.shards[int(part[numbers[0]])].taps[tap]
                lying = LyingRows(array.map(), row[numbers], numbers)
            except FileNotFoundError:  # compacted away since
                values = self.gather(tap, keys[numbers])
                lying = LyingRows(values, np.arange(len(numbers)), numbers)
            parts.append(lying)
        return parts

    def disk_order(self, tap: str, keys: Keys) -> NDArray[np.intp]:
        """Return the order of keys of shape (m, 32) in which they lie on the disk."""
        located = self._locate(tap, keys)
        # By name: a number depends on which shards the index on disk has.
        numbers = sorted(located.shards, key=lambda number: located.shards[number].path.name)
        rank = np.zeros(max(numbers, default=0) + 1, np.int64)
        rank[numbers] = np.arange(len(numbers))
        return np.lexsort((located.row, rank[located.part]))

    def _locate(self, tap: str, keys: Keys) -> Located:
        """Return where keys lie; raise `FeaturesError` if any is missing."""
        if tap not in self.taps and not self.damaged:
            raise FeaturesError(
                f"no features of tap {tap!r} in {self.spec.name}: there are "
                f"{', '.join(self.taps) or 'none'}"
            )
        located = self._find(tap, keys)
        missing = np.count_nonzero(located.row < 0)
        if missing or tap not in self.taps:
            raise FeaturesError(
                f"{missing} of {len(keys)} images have no features of tap {tap!r} in "
                f"{self.spec.name}{self._damage_note()}"
            )
        return located

    def _damage_note(self) -> str:
        if not self.damaged:
            return ""
        more = f" and {len(self.damaged) - 1} more" if len(self.damaged) > 1 else ""
        return f" (left out as damaged: {min(self.damaged)}{more})"

    def add(
        self, keys: Keys, features: Mapping[str, Floats], provenance: Mapping[str, object]
    ) -> Path:
        """Write rows as one shard, after which they can be found."""
        self.write_spec()
        dtype = self.spec.dtype
        path = write_shard(
            self.layout,
            self.folder,
            spec_digest=self.spec.digest,
            keys=keys,
            features={tap: values.astype(dtype, copy=False) for tap, values in features.items()},
            provenance=provenance,
        )
        self.write_spec()  # a collection may have removed the space before it saw this shard
        with self._lock:
            self._known[path] = read_shard(path, self.spec.digest)
            self._rebuild()
        return path

    def write_index(self) -> None:
        """Write the index of keys, if that on disk lacks many rows, where that is possible."""
        with self._lock:
            shards, stored, live = list(self._known.values()), self._stored, self._live.copy()
        lacking = sum(map(len, shards))
        rows = stored.index.table.rows if stored else np.zeros(0, np.int64)
        indexed, gone = int(rows.sum()), int(rows[~live].sum())
        enough = lacking >= max(INDEX_ROWS, indexed * _LACKING_SHARE)
        if (not enough and gone < max(1, indexed * _GONE_SHARE)) or not self.taps:
            return
        before = (stored.index, live) if stored else None
        try:
            write_index(self.layout, self.spec.name, shards, before)
        except (CacheWriteError, FileNotFoundError):
            pass  # read-only, full, or a shard went meanwhile: the next run tries again
        except CacheFormatError:
            if stored:
                self._forget_index()
                self.write_index()

    def write_spec(self) -> None:
        """Write ``spec.json`` if it is not there."""
        target = self.folder / "spec.json"
        if not target.exists():
            text = json.dumps(self.spec.to_dict(), indent=2, sort_keys=True) + "\n"
            publish_bytes(self.layout, target, text.encode())


def _distinct(numbers: NDArray[np.integer[Any]]) -> list[int]:
    """Return the numbers that there are, without -1."""
    distinct: list[int] = np.flatnonzero(np.bincount(numbers + 1)[1:]).tolist()
    return distinct


class ShardWriter:
    """Collect rows and write them as shards of at most 24 MiB or 30 s of work."""

    def __init__(self, space: FeatureSpace, provenance: Mapping[str, object]) -> None:
        self._space = space
        self._provenance = provenance
        self._keys = np.empty((0, 32), np.uint8)
        self._features: dict[str, Floats] = {}
        self._rows = 0
        self._since = time.monotonic()

    def add(self, keys: Keys, features: Mapping[str, Floats]) -> None:
        """Take rows of shape (n, 32) and (n, d); write a shard when enough are there."""
        start = 0
        while start < len(keys):
            if not self._features:
                self._allocate(features)
            if not self._rows:
                self._since = time.monotonic()
            take = min(len(self._keys) - self._rows, len(keys) - start)
            here, there = slice(self._rows, self._rows + take), slice(start, start + take)
            self._keys[here] = keys[there]
            for tap, values in features.items():
                self._features[tap][here] = values[there]
            self._rows += take
            start += take
            late = time.monotonic() - self._since >= SHARD_SECONDS
            if late or self._rows == len(self._keys):
                self._commit()

    def _allocate(self, features: Mapping[str, Floats]) -> None:
        # Once, for a whole shard: the system gives the memory as it is filled.
        dtype = np.dtype(self._space.spec.dtype)
        row_bytes = sum(values.shape[1] for values in features.values()) * dtype.itemsize
        rows = max(1, SHARD_BYTES // row_bytes)
        self._keys = np.empty((rows, 32), np.uint8)
        self._features = {
            tap: np.empty((rows, values.shape[1]), dtype) for tap, values in features.items()
        }

    def flush(self) -> None:
        """Write what was collected, and give the memory back."""
        self._commit()
        self._keys, self._features = np.empty((0, 32), np.uint8), {}

    def _commit(self) -> None:
        rows, self._rows = self._rows, 0
        if rows:
            features = {tap: values[:rows] for tap, values in self._features.items()}
            self._space.add(self._keys[:rows], features, self._provenance)
