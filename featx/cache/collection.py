"""`collect_garbage`: remove features that no dataset uses, and put small shards together.

What makes this safe beside extractions, readers and other collections:

- A shard younger than ``older_than_s`` is left alone: its dataset may not have been written yet. An
  extraction gives an older shard that it counts on a new time.
- Rows that stay are published in a new shard before the old one is removed, so that they can be
  found at every instant. A repeated row is dropped only where the copy that stays is published
  by the same collection: nobody relies on a shard that another process may be removing.
- Parts of manifests that none names go by the same age, but no earlier than an hour after somebody
  looked at them. A writer of a manifest gives its parts a new time before it renames the manifest.
- Shards are removed under the lock of the datasets, after another look at their ages and at whether
  the datasets are still those that were read. A dataset is written under the same lock, after a
  look at whether its shards are there.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.key_index import KeyIndex
from featx.cache.layout import CacheLayout, list_folder, list_shards, locked, publish_bytes, writing
from featx.cache.manifest import read_heading, read_manifest
from featx.cache.manifest_parts import PART_NAME
from featx.cache.records import damage_of
from featx.cache.repair import check_is_cache, spec_digits
from featx.cache.shard import SHARD_BYTES, Part, Shard, read_shard, write_parts
from featx.cache.space import INDEX_ROWS, open_space
from featx.exceptions import CacheError, CacheFormatError
from featx.files.identity import Keys, copies, stamp_of, whole_keys

DAY_S = 86_400.0
_HOUR_S = 3_600.0
# Shards with fewer bytes of rows than this are put together.
_SMALL_BYTES = 8 << 20
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class SpaceCollection:
    """What goes from a space."""

    space: str  # name of its folder
    used: bool  # whether a dataset names it
    removed: bool = False  # whether the whole folder goes
    rows: int = 0  # that stay, those of young and damaged shards left out
    rows_unused: int = 0  # that go: of images in no dataset
    rows_repeated: int = 0  # that go: copies of rows that stay
    size_bytes: int = 0  # of the rows that go
    shards_removed: int = 0
    shards_written: int = 0
    shards_young: int = 0  # left alone for their age
    damaged: dict[str, str] = field(default_factory=dict)  # left alone, and what is wrong


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove in a dry run, space by space."""

    cache: Path
    dry_run: bool
    older_than_s: float  # age from which shards were looked at
    spaces: tuple[SpaceCollection, ...]
    parts_removed: int = 0  # of manifests that have gone or were replaced
    parts_bytes: int = 0


Stamp = tuple[tuple[str | int, ...], ...]


def collect_garbage(
    layout: CacheLayout, *, older_than_s: float = DAY_S, dry_run: bool = True
) -> Collection:
    """Do what `FeatureCache.gc` says; stopped at any instant, it can be run again."""
    check_is_cache(layout)
    collector = _Collector(layout, older_than_s)
    collector.read()
    work = collector.look_at if dry_run else collector.clean
    spaces = tuple(work(folder) for folder in layout.space_folders())
    parts = collector.clean_parts(dry_run=dry_run)
    for index in [] if dry_run else layout.stored_indexes():
        if not (layout.spaces / index.stem).exists():
            with writing(index):
                index.unlink(missing_ok=True)
    return Collection(layout.root, dry_run, older_than_s, spaces, len(parts), sum(parts))


@dataclass(slots=True)
class _Entry:
    """The rows of a shard that are used, and whether some of them are in other shards too."""

    shard: Shard
    rows: NDArray[np.int64]
    keys: Keys
    repeats: bool = False

    @property
    def loses_rows(self) -> bool:
        return len(self.rows) < len(self.shard)

    @property
    def size_bytes(self) -> int:
        """Size of the rows that stay."""
        return len(self.rows) * self.shard.row_bytes

    @property
    def like(self) -> tuple[object, ...]:
        """What shards have in common that can be put together."""
        taps = self.shard.taps.items()
        return (self.shard.spec_digest, *sorted((t, a.dtype.str, a.shape[1]) for t, a in taps))


@dataclass(frozen=True, slots=True)
class _Group:
    """Shards that go together, after their rows that stay are in new ones; no shard is in two."""

    entries: Sequence[_Entry]
    rows_repeated: int = 0  # of the rows that go: copies of others that stay

    @property
    def parts(self) -> list[Part]:
        return [Part(entry.shard, entry.rows) for entry in self.entries if len(entry.rows)]

    @property
    def paths(self) -> list[Path]:
        return [entry.shard.path for entry in self.entries]


@dataclass(slots=True)
class _Collector:
    """A collection at work: the keys that datasets use, by space, and the files that say so."""

    layout: CacheLayout
    older_than_s: float
    stamp: Stamp = ()
    used: dict[str, list[Keys]] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)  # names of their files

    def read(self) -> None:
        """Read every manifest; `CacheError` if one cannot be read."""
        self.stamp, self.used, self.parts = self.current_stamp(), {}, set()
        for name, *_ in self.stamp:
            path = self.layout.datasets / str(name)
            try:
                manifest = read_manifest(path)
                self.parts |= {part.file_name for part in read_heading(path).parts}
            except FileNotFoundError:
                continue
            except CacheFormatError as error:
                raise CacheError(
                    f"{error}. Nobody can tell which features it uses, so nothing is removed: "
                    "run `featx cache verify`, which says what to do about it"
                ) from error
            keys = manifest.key[manifest.key.any(axis=1)]
            for space in {block.space for block in manifest.blocks}:
                self.used.setdefault(space, []).append(keys)

    def clean_parts(self, *, dry_run: bool) -> list[int]:
        """Remove parts that no manifest names, and return their sizes in bytes."""
        for _ in range(_ATTEMPTS):
            if self.changed():
                self.read()
            unused = self.unused_parts()
            if dry_run or not unused:
                return list(unused.values())
            with locked(self.layout.datasets):
                if self.changed():
                    continue
                unused = self.unused_parts()  # some may be counted on by now
                for path in unused:
                    with writing(path):
                        path.unlink(missing_ok=True)
                return list(unused.values())
        return []

    def unused_parts(self) -> dict[Path, int]:
        """Return the parts that no manifest names and nobody counted on lately, with sizes."""
        unused = {}
        for path in list_folder(self.layout.parts):
            if path.name in self.parts or not PART_NAME.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if time.time() - status.st_mtime > max(self.older_than_s, _HOUR_S):
                    unused[path] = status.st_size
        return unused

    def current_stamp(self) -> Stamp:
        stamp = []
        for path in self.layout.manifests():
            with suppress(FileNotFoundError):
                stamp.append((path.name, *stamp_of(path.stat())))
        return tuple(stamp)

    def changed(self) -> bool:
        """Return whether a dataset was written or removed since they were read."""
        return self.current_stamp() != self.stamp

    def is_young(self, path: Path) -> bool:
        """Return whether a file is there and younger than what may go."""
        with suppress(FileNotFoundError):
            return self.older_than_s > 0 and time.time() - path.stat().st_mtime < self.older_than_s
        return False

    def look_at(self, folder: Path) -> SpaceCollection:
        """Return what would go from a space."""
        groups, stays = self.plan(folder)
        going = {path for group in groups for path in group.paths}
        removed = not stays.used and self.is_empty(folder, but=going)
        return _report(stays, groups, removed=removed)

    def clean(self, folder: Path) -> SpaceCollection:
        """Carry out the plan of a space; make another one when something came in between."""
        done: list[_Group] = []
        damaged: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            if self.changed():
                self.read()
            groups, stays = self.plan(folder, damaged)
            again = False
            for group in groups:
                try:
                    carried_out = self.carry_out(folder, group)
                except FileNotFoundError:
                    continue  # another collection was faster with these shards
                except CacheFormatError:
                    damaged |= _damage(group)
                    again = True
                    continue
                if not carried_out:
                    again = True
                    break
                done.append(group)
            if not again:
                break
        removed = False
        if not stays.used:
            with locked(self.layout.datasets):
                removed = not self.changed() and self.is_empty(folder) and self.remove(folder)
        stays.damaged.update(damaged)
        if not removed and (stays.rows >= INDEX_ROWS or self.layout.index(folder.name).exists()):
            # Without its specification a space cannot be opened; an extraction writes both again.
            with suppress(CacheFormatError, FileNotFoundError):
                open_space(self.layout, folder.name).write_index()
        return _report(stays, done, removed=removed)

    def carry_out(self, folder: Path, group: _Group) -> bool:
        """Publish what stays of a group, remove the rest; False when datasets changed meanwhile."""
        written = write_parts(self.layout, folder, group.parts)
        with locked(self.layout.datasets):
            # A young shard is one that an extraction counts on by now.
            changed = self.changed() or any(map(self.is_young, group.paths))
            for path in written if changed else group.paths:
                with writing(path):
                    path.unlink(missing_ok=True)
        return not changed

    def is_empty(self, folder: Path, *, but: Container[Path] = ()) -> bool:
        """Return whether nothing is in a space beside its young specification and some shards."""
        names = {path.name for path in list_folder(folder)}
        shards = [path for path in list_folder(folder / "shards") if path not in but]
        young = self.is_young(folder / "spec.json")
        return not young and not shards and names <= {"spec.json", "shards"}

    def remove(self, folder: Path) -> bool:
        """Remove an empty space, unless somebody begins to write into it."""
        path = folder / "spec.json"
        with writing(folder):
            spec = path.read_bytes() if path.exists() else None
            try:
                with suppress(FileNotFoundError):
                    (folder / "shards").rmdir()
                path.unlink(missing_ok=True)
                folder.rmdir()
                checked = self.layout.checked / f"{folder.name}.json"
                if checked.exists():
                    checked.unlink(missing_ok=True)
            except FileNotFoundError:
                return True
            except OSError:
                # A shard came in meanwhile, and needs its specification.
                if spec is not None and list_shards(folder) and not path.exists():
                    publish_bytes(self.layout, path, spec)
                return False
        return True

    def plan(
        self, folder: Path, leave: Container[str] = ()
    ) -> tuple[list[_Group], SpaceCollection]:
        """Return what goes from a space, and what stays; some shards are left alone."""
        index = KeyIndex([np.empty((0, 32), np.uint8), *self.used.get(folder.name, ())])
        alike: dict[tuple[object, ...], list[_Entry]] = {}
        groups: list[_Group] = []
        damaged: dict[str, str] = {}
        young = rows_used = 0
        for path in list_shards(folder):
            if path.name in leave:
                continue
            if self.is_young(path):
                young += 1
                continue
            try:
                shard = read_shard(path, spec_digits(folder))
                shard.keys.check()  # else damaged keys would look unused
                keys = shard.keys.map()
            except FileNotFoundError:
                continue
            except CacheFormatError as error:
                damaged[path.name] = str(error)
                continue
            rows = np.flatnonzero(index.find(keys)[1] >= 0)
            entry = _Entry(shard, rows, keys[rows])
            if len(rows):
                alike.setdefault(entry.like, []).append(entry)
            else:
                groups.append(_Group([entry]))
        for same in alike.values():
            groups += _group(same)
            rows_used += sum(len(entry.rows) for entry in same)
        used = folder.name in self.used
        return groups, SpaceCollection(
            folder.name, used, rows=rows_used, shards_young=young, damaged=damaged
        )


def _report(stays: SpaceCollection, groups: list[_Group], *, removed: bool) -> SpaceCollection:
    """Return what stays of a space with what goes of it."""
    entries = [entry for group in groups for entry in group.entries]
    repeated = sum(group.rows_repeated for group in groups)
    gone = [(len(entry.shard) - len(entry.rows), entry.shard.row_bytes) for entry in entries]
    written = 0
    for group in groups:
        if rows := sum(len(part.rows) for part in group.parts):
            written += -(-rows // group.parts[0].shard.usual_rows)
    return replace(
        stays,
        removed=removed,
        rows_unused=sum(rows for rows, _ in gone) - repeated,
        rows_repeated=repeated,
        size_bytes=sum(rows * row_bytes for rows, row_bytes in gone),
        shards_removed=len(entries),
        shards_written=written,
    )


def _damage(group: _Group) -> dict[str, str]:
    """Return the damaged shards of a group, and what is wrong with each."""
    damaged = {}
    for entry in group.entries:
        with suppress(FileNotFoundError):
            if reason := damage_of(entry.shard):
                damaged[entry.shard.path.name] = reason
    return damaged


def _group(entries: Sequence[_Entry]) -> Iterator[_Group]:
    """Put shards together whose rows repeat each other, that are small, or that lose rows."""
    repeated = _drop_repeated(entries)
    linked = [entry for entry in entries if entry.repeats]
    if linked:
        yield _Group(linked, repeated)
    alone = [entry for entry in entries if not entry.repeats]
    touched = [e for e in alone if e.loses_rows or e.size_bytes < _SMALL_BYTES]
    # Smallest first: then at most one group stays small, and a second run finds nothing to do.
    touched.sort(key=lambda entry: (entry.size_bytes, entry.shard.path))
    groups: list[list[_Entry]] = []
    for entry in touched:
        size = sum(other.size_bytes for other in groups[-1]) if groups else SHARD_BYTES
        if size + entry.size_bytes > SHARD_BYTES:
            groups.append([])
        groups[-1].append(entry)
    yield from (_Group(group) for group in groups if len(group) > 1 or group[0].loses_rows)


def _drop_repeated(entries: Sequence[_Entry]) -> int:
    """Keep the first of equal keys, mark the shards that share any, and count what is dropped."""
    keys = np.concatenate([entry.keys for entry in entries])
    dropped = copies(keys)
    if not len(dropped):
        return 0
    shared = np.isin(whole_keys(keys), whole_keys(keys[dropped]))
    keep = np.ones(len(keys), np.bool_)
    keep[dropped] = False
    start = 0
    for entry in entries:
        here = slice(start, start + len(entry.keys))
        start += len(entry.keys)
        entry.repeats = bool(shared[here].any())
        entry.rows = entry.rows[keep[here]]
    return len(dropped)
