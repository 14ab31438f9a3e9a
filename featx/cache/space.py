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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.hdf5 import Array
from featx.cache.layout import CacheLayout, list_shards, publish_bytes, reading
from featx.cache.records import CheckedShards
from featx.cache.shard import SHARD_BYTES, Floats, Shard, read_shard, write_shard
from featx.exceptions import CacheFormatError, CacheWriteError, FeaturesError
from featx.files.identity import Keys
from featx.spec import FeatureSpec

_LOG = logging.getLogger("featx")
SHARD_SECONDS = 30.0
_YOUNG_S = 3600.0
# A run is joined with the one before it unless that one is this many times as long: a look-up then
# meets few runs, and a shard that comes to millions of rows does not sort them all again.
_GROWTH = 8
_BLOCK_ROWS = 1 << 20
_ROW_MASK = np.uint64((1 << 32) - 1)
_LEAST_RUN = 64  # fewer rows are copied sooner than mapped


# Rows by key


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Some rows, sorted by the beginning of their keys."""

    words: NDArray[np.uint64]  # the keys, shape (n, 4)
    # The first 32 bits of a key and the 32 bits of its row, rising: numbers are sorted ten times
    # faster than rows by their numbers.
    slots: NDArray[np.uint64]

    @classmethod
    def of(cls, words: NDArray[np.uint64]) -> _Run:
        slots = np.arange(len(words), dtype=np.uint64)
        for start in range(0, len(words), _BLOCK_ROWS):  # a copy of all would be a fifth more
            block = slice(start, start + _BLOCK_ROWS)
            slots[block] |= _prefix(words[block])
        slots.sort()
        return cls(words, slots)

    def __len__(self) -> int:
        return len(self.words)

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it is not here."""
        rows = np.full(len(words), -1, np.int64)
        prefix = _prefix(words)
        at = np.searchsorted(self.slots, prefix)
        left = np.arange(len(words))
        # More than one pass only where whole keys differ after equal beginnings.
        while left.size:
            inside = at < len(self)
            left, at = left[inside], at[inside]
            slot = self.slots[at]
            row = (slot & _ROW_MASK).astype(np.int64)
            alike = slot & ~_ROW_MASK == prefix[left]
            left, at, row = left[alike], at[alike], row[alike]
            equal = (self.words[row] == words[left]).all(axis=1)
            rows[left[equal]] = row[equal]
            left, at = left[~equal], at[~equal] + 1
        return rows


def _prefix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    prefix: NDArray[np.uint64] = words[:, 0] & ~_ROW_MASK
    return prefix


class KeyIndex:
    """Rows by key; where a key occurs more than once, any of its rows stands for it."""

    def __init__(self, parts: Sequence[Keys | Array] = ()) -> None:
        self._ends = np.cumsum([0, *(part.shape[0] for part in parts)])
        self._runs = (_Run.of(_words(parts)),) if len(self) else ()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def extended(self, parts: Sequence[Keys | Array]) -> KeyIndex:
        """Return an index that has these parts, too, after those of this one."""
        if not parts:
            return self
        more = KeyIndex(parts)
        whole = KeyIndex()
        whole._ends = np.concatenate([self._ends, self._ends[-1] + more._ends[1:]])
        runs = [*self._runs, *more._runs]
        while len(runs) > 1 and len(runs[-2]) < _GROWTH * len(runs[-1]):
            runs[-2:] = [_Run.of(np.concatenate([run.words for run in runs[-2:]]))]
        whole._runs = tuple(runs)
        return whole

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part and the row of each key, -1 where it is not here."""
        slot = np.full(len(keys), -1, np.int64)
        words = np.ascontiguousarray(keys).view(np.uint64)
        left = np.arange(len(keys))
        start = 0
        for run in self._runs:
            row = run.find(words[left])
            here = row >= 0
            slot[left[here]] = row[here] + start
            left = left[~here]
            start += len(run)
        part = np.searchsorted(self._ends, slot, side="right") - 1
        row = slot - self._ends[part]
        missing = slot < 0
        part[missing] = -1
        row[missing] = -1
        return part, row


def _words(parts: Sequence[Keys | Array]) -> NDArray[np.uint64]:
    words = np.empty((sum(part.shape[0] for part in parts), 4), np.uint64)
    start = 0
    for part in parts:  # mapped one at a time: a process may have few files open
        keys = part.map() if isinstance(part, Array) else part
        words[start : start + len(keys)] = np.ascontiguousarray(keys).view(np.uint64)
        start += len(keys)
    return words


# Rows of a specification


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


Located = tuple[NDArray[np.int64], NDArray[np.int64], Sequence[Shard]]


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


@dataclass(frozen=True, slots=True)
class _Snapshot:
    shards: tuple[Shard, ...]
    indices: dict[str, tuple[KeyIndex, tuple[Shard, ...]]]

    def find(self, tap: str, keys: Keys) -> Located:
        """Return the number of each key's shard and its row in it, -1 for none, and the shards."""
        index, shards = self.indices.get(tap, (KeyIndex(), ()))
        return *index.find(keys), shards


class FeatureSpace:
    """Features of one specification, found by tap and key; rows of `damaged` shards are missing.

    Opening reads the keys of every shard. A shard is compared with its digests before its rows are
    found for the first time, and again when its file changed.
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
        self._snapshot = _Snapshot((), {})
        self.refresh()
        if self.shards:
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
            paths = list_shards(self.folder)
            for path in paths:
                if path in self._known or path in self.damaged:
                    continue
                try:
                    shard = read_shard(path, self.spec.digest)
                    shard.keys.check()
                    self._known[path] = shard
                except FileNotFoundError:
                    vanished = True  # after the listing: its rows may be in a newer shard
                except CacheFormatError as error:
                    self._leave_out(path, str(error))
            present = set(paths)
            self._known = {path: shard for path, shard in self._known.items() if path in present}
            try:
                self._rebuild()
            except FileNotFoundError:
                vanished = True
            if vanished:
                self.refresh()

    def _leave_out(self, path: Path, reason: str) -> None:
        self.damaged[path] = reason
        self._known.pop(path, None)
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
        shards = tuple(self._known.values())
        by_tap: dict[str, list[Shard]] = {}
        for shard in shards:
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
        self._snapshot = _Snapshot(shards, indices)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards in use."""
        return self._snapshot.shards

    @property
    def taps(self) -> tuple[str, ...]:
        """Taps for which there are features."""
        return tuple(sorted(self._snapshot.indices))

    def has(self, taps: Sequence[str], keys: Keys) -> NDArray[np.bool_]:
        """Return whether all taps of each key are here and sound, shape (m,)."""
        while True:
            snapshot = self._snapshot
            present = np.ones(len(keys), np.bool_)
            used: list[Shard] = []
            for tap in taps:
                if tap not in snapshot.indices:
                    return np.zeros(len(keys), np.bool_)
                part, row, shards = snapshot.find(tap, keys)
                present &= row >= 0
                used += _used(part, shards)
            if not self._drop_damaged(used):
                return present

    def recheck(self, tap: str, keys: Keys) -> None:
        """Compare the shards of keys with their digests, whatever is known of them."""
        part, _, shards = self._snapshot.find(tap, keys)
        self._drop_damaged(_used(part, shards), again=True)

    def intact(self) -> bool:
        """Return whether the shards in use are all in their places."""
        return all(shard.path.exists() for shard in self.shards)

    def touch(self, taps: Sequence[str], keys: Keys) -> None:
        """Give the shards that hold keys a new time, so that no collection removes them."""
        for tap in taps:
            part, _, shards = self._snapshot.find(tap, keys)
            for shard in _used(part, shards):
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
        part, row, arrays = self._locate(tap, keys)
        if not len(keys):
            return np.empty((0, arrays[0].shape[1]), arrays[0].dtype)
        if (part == part[0]).all():
            whole = arrays[part[0]].map()
            together = bool((np.diff(row) == 1).all())
            rows: Floats = whole[row[0] : row[0] + len(row)] if together else whole[row]
            return rows
        out = np.empty((len(keys), arrays[0].shape[1]), arrays[0].dtype)
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            out[here] = arrays[number].map()[row[here]]
        return out

    def parts(self, tap: str, keys: Keys) -> list[LyingRows]:
        """Return where the features of keys (m, 32) lie, shard by shard, mapped."""
        part, row, arrays = self._locate(tap, keys)
        order = np.lexsort((row, part))
        parts = []
        for numbers in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if not len(numbers):
                continue
            try:
                lying = LyingRows(arrays[part[numbers[0]]].map(), row[numbers], numbers)
            except FileNotFoundError:  # compacted away since
                values = self.gather(tap, keys[numbers])
                lying = LyingRows(values, np.arange(len(numbers)), numbers)
            parts.append(lying)
        return parts

    def disk_order(self, tap: str, keys: Keys) -> NDArray[np.intp]:
        """Return the order of keys of shape (m, 32) in which they lie on the disk."""
        part, row, _ = self._locate(tap, keys)
        return np.lexsort((row, part))

    def _locate(
        self, tap: str, keys: Keys
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Array]]:
        while True:
            snapshot = self._snapshot
            if tap not in snapshot.indices and not self.damaged:
                raise FeaturesError(
                    f"no features of tap {tap!r} in {self.spec.name}: there are "
                    f"{', '.join(self.taps) or 'none'}"
                )
            part, row, shards = snapshot.find(tap, keys)
            if not self._drop_damaged(_used(part, shards)):
                break
        missing = np.count_nonzero(row < 0)
        if missing or not shards:
            raise FeaturesError(
                f"{missing} of {len(keys)} images have no features of tap {tap!r} in "
                f"{self.spec.name}{self._damage_note()}"
            )
        return part, row, [shard.taps[tap] for shard in shards]

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

    def write_spec(self) -> None:
        """Write ``spec.json`` if it is not there."""
        target = self.folder / "spec.json"
        if not target.exists():
            text = json.dumps(self.spec.to_dict(), indent=2, sort_keys=True) + "\n"
            publish_bytes(self.layout, target, text.encode())


def _used(part: NDArray[np.int64], shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards in which rows were found, given the number of each row's."""
    return [shards[number] for number in np.flatnonzero(np.bincount(part + 1)[1:]).tolist()]


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
