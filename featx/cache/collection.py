"""`collect_garbage`: remove features that no dataset uses, and put small shards together.

What makes this safe beside extractions, readers and other collections:

- A shard younger than ``older_than_s`` is left alone: its dataset may not have been written yet. An
  extraction gives an older shard that it counts on a new time.
- Rows that stay are published in a new shard before the old one is removed, so that they can be
  found at every instant. A repeated row is dropped only where the copy that stays is published
  by the same collection: nobody relies on a shard that another process may be removing.
- Shards are removed under the lock of the datasets, after another look at their ages and at whether
  the datasets are still those that were read. A dataset is written under the same lock, after a
  look at whether its shards are there.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.cache.key_index import KeyIndex, whole_keys
from featx.cache.layout import CacheLayout, list_folder, list_shards, publish_bytes, writing
from featx.cache.manifest import read_manifest
from featx.cache.records import damage_of
from featx.cache.repair import check_is_cache, spec_digits
from featx.cache.replacing import locked
from featx.cache.shard import SHARD_BYTES, Keys, Part, Shard, read_shard, write_parts
from featx.exceptions import CacheError, CacheFormatError
from featx.files.stamps import stamp_of

DAY_S = 86_400.0
# Shards with fewer bytes of rows than this are put together.
_SMALL_BYTES = 8 << 20
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class SpaceCollection:
    """What goes from a space."""

    space: str  # name of its folder
    used: bool  # whether a dataset names it
    removed: bool  # whether the whole folder goes
    rows: int  # that stay, those of young and damaged shards left out
    rows_unused: int  # that go: of images in no dataset
    rows_repeated: int  # that go: copies of rows that stay
    size_bytes: int  # of the rows that go
    shards_removed: int
    shards_written: int
    shards_young: int  # left alone for their age
    damaged: dict[str, str]  # left alone for their damage, and what it is


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove in a dry run, space by space."""

    cache: Path
    dry_run: bool
    older_than_s: float  # age from which shards were looked at
    spaces: tuple[SpaceCollection, ...]


Stamp = tuple[tuple[str | int, ...], ...]


def collect_garbage(
    layout: CacheLayout, *, older_than_s: float = DAY_S, dry_run: bool = True
) -> Collection:
    """Remove spaces and rows that no dataset uses, and put shards under 8 MiB together.

    A row is used when a dataset that names its space has an image with its key. Rows that stay keep
    every byte. Stopped at any instant, it can be run again.

    Shards younger than `older_than_s` are left alone: an extraction writes its dataset last. A dry
    run only says what would go.
    """
    check_is_cache(layout)
    collector = _Collector(layout, older_than_s)
    collector.read()
    work = collector.look_at if dry_run else collector.clean
    spaces = tuple(work(folder) for folder in layout.space_folders())
    return Collection(layout.root, dry_run, older_than_s, spaces)


@dataclass(slots=True)
class _Collector:
    """A collection at work: the keys that datasets use, by space, and the files that say so."""

    layout: CacheLayout
    older_than_s: float
    stamp: Stamp = ()
    used: dict[str, list[Keys]] = field(default_factory=dict)

    def read(self) -> None:
        """Read every manifest; `CacheError` if one cannot be read."""
        self.stamp, self.used = self.current_stamp(), {}
        for name, *_ in self.stamp:
            try:
                manifest = read_manifest(self.layout.datasets / str(name))
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
        """Return whether a file is younger than what may go."""
        return self.older_than_s > 0 and time.time() - path.stat().st_mtime < self.older_than_s

    def look_at(self, folder: Path) -> SpaceCollection:
        """Return what would go from a space."""
        plan = self.plan(folder)
        removed = folder.name not in self.used and self.is_empty(folder, but=plan)
        return self.report(folder, plan, plan.groups, removed)

    def clean(self, folder: Path) -> SpaceCollection:
        """Carry out the plan of a space; make another one when something came in between."""
        done: list[_Group] = []
        damaged: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            if self.changed():
                self.read()
            plan = self.plan(folder, damaged)
            again = False
            for group in plan.groups:
                try:
                    carried_out = self.carry_out(folder, group)
                except FileNotFoundError:
                    continue  # another collection was faster with these shards
                except CacheFormatError:
                    for shard in group.old:
                        with suppress(FileNotFoundError):
                            if reason := damage_of(shard):
                                damaged[shard.path.name] = reason
                    again = True
                    continue
                if not carried_out:
                    again = True
                    break
                done.append(group)
            if not again:
                break
        removed = False
        if folder.name not in self.used:
            with locked(self.layout.datasets):
                removed = not self.changed() and self.is_empty(folder) and self.remove(folder)
        plan.damaged.update(damaged)
        return self.report(folder, plan, done, removed)

    def report(
        self, folder: Path, plan: _Plan, groups: Sequence[_Group], removed: bool
    ) -> SpaceCollection:
        repeated = sum(group.rows_repeated for group in groups)
        return SpaceCollection(
            space=folder.name,
            used=folder.name in self.used,
            removed=removed,
            rows=plan.rows,
            rows_unused=sum(group.rows_gone for group in groups) - repeated,
            rows_repeated=repeated,
            size_bytes=sum(group.size_bytes for group in groups),
            shards_removed=sum(len(group.old) for group in groups),
            shards_written=sum(group.shards_written for group in groups),
            shards_young=plan.young,
            damaged=plan.damaged,
        )

    def carry_out(self, folder: Path, group: _Group) -> bool:
        """Publish what stays of a group, remove the rest; False when datasets changed meanwhile."""
        written = write_parts(self.layout, folder, group.parts)
        old = [shard.path for shard in group.old]
        with locked(self.layout.datasets):
            changed = self.changed() or any(map(self.is_reused, old))
            for path in written if changed else old:
                with writing(path):
                    path.unlink(missing_ok=True)
        return not changed

    def is_reused(self, path: Path) -> bool:
        """Return whether an extraction now counts on a shard."""
        with suppress(FileNotFoundError):
            return self.is_young(path)
        return False

    def is_empty(self, folder: Path, *, but: _Plan | None = None) -> bool:
        """Return whether nothing is in a space, or would be after a plan was carried out."""
        going = {shard.path for group in but.groups for shard in group.old} if but else set()
        names = {path.name for path in list_folder(folder)}
        try:
            young = "spec.json" in names and self.is_young(folder / "spec.json")
        except FileNotFoundError:
            return False
        shards = set(list_folder(folder / "shards"))
        return not young and not shards - going and names <= {"spec.json", "shards"}

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

    def plan(self, folder: Path, leave: Container[str] = ()) -> _Plan:
        """Decide what goes from a space, in which some shards are left alone."""
        index = KeyIndex([np.empty((0, 32), np.uint8), *self.used.get(folder.name, ())])
        entries: list[_Entry] = []
        damaged: dict[str, str] = {}
        young = 0
        for path in list_shards(folder):
            if path.name in leave:
                continue
            try:
                if self.is_young(path):
                    young += 1
                    continue
                shard = read_shard(path, spec_digits(folder))
                shard.keys.check()  # else damaged keys would look unused
                keys = shard.keys.map()
                rows = np.flatnonzero(index.find(keys)[1] >= 0)
            except FileNotFoundError:
                continue
            except CacheFormatError as error:
                damaged[path.name] = str(error)
                continue
            entries.append(_Entry(Part(shard, rows), keys[rows]))
        alike: dict[tuple[object, ...], list[_Entry]] = {}
        groups = []
        for entry in entries:
            if len(entry.part.rows):
                alike.setdefault(entry.like, []).append(entry)
            else:
                groups.append(_Group((entry.part.shard,)))
        for same in alike.values():
            groups += _group(same)
        rows_kept = sum(len(entry.part.rows) for entry in entries)
        return _Plan(tuple(groups), rows_kept, young, damaged)


@dataclass(frozen=True, slots=True)
class _Group:
    """Shards that go together, and their rows that stay, in new shards.

    `rows_repeated` of the rows that go are copies of others that stay.
    """

    old: tuple[Shard, ...]
    parts: tuple[Part, ...] = ()
    rows_repeated: int = 0

    @property
    def rows_gone(self) -> int:
        """Number of rows that go, the repeated ones among them."""
        return sum(map(len, self.old)) - sum(len(part.rows) for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows that go."""
        before = sum(len(shard) * shard.row_bytes for shard in self.old)
        return before - sum(part.size_bytes for part in self.parts)

    @property
    def shards_written(self) -> int:
        """Number of new shards."""
        rows = sum(len(part.rows) for part in self.parts)
        return -(-rows // self.parts[0].shard.usual_rows) if rows else 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done with a space; no shard is in two groups."""

    groups: tuple[_Group, ...]
    rows: int  # that stay
    young: int  # shards that were not looked at
    damaged: dict[str, str]  # shards that stay as they are, and what is wrong with them


@dataclass(slots=True)
class _Entry:
    """The rows of a shard that are used, and whether some of them are in other shards too."""

    part: Part
    keys: Keys
    repeats: bool = False

    @property
    def loses_rows(self) -> bool:
        return len(self.part.rows) < len(self.part.shard)

    @property
    def like(self) -> tuple[object, ...]:
        """What shards have in common that can be put together."""
        taps = self.part.shard.taps.items()
        return (self.part.shard.spec_digest, *sorted((t, a.dtype.str, a.shape[1]) for t, a in taps))


def _group(entries: Sequence[_Entry]) -> Iterator[_Group]:
    """Put shards together whose rows repeat each other, that are small, or that lose rows."""
    repeated = _drop_repeated(entries)
    linked = [entry for entry in entries if entry.repeats]
    if linked:
        yield _as_group(linked, repeated)
    alone = [entry for entry in entries if not entry.repeats]
    touched = [e for e in alone if e.loses_rows or e.part.size_bytes < _SMALL_BYTES]
    # Smallest first: then at most one group stays small, and a second run finds nothing to do.
    touched.sort(key=lambda entry: (entry.part.size_bytes, entry.part.shard.path))
    waiting: list[_Entry] = []
    for entry in [*touched, None]:
        size = sum(waited.part.size_bytes for waited in waiting)
        if waiting and (entry is None or size + entry.part.size_bytes > SHARD_BYTES):
            if len(waiting) > 1 or waiting[0].loses_rows:
                yield _as_group(waiting)
            waiting = []
        if entry is not None:
            waiting.append(entry)


def _as_group(entries: Sequence[_Entry], repeated: int = 0) -> _Group:
    parts = tuple(entry.part for entry in entries if len(entry.part.rows))
    return _Group(tuple(entry.part.shard for entry in entries), parts, repeated)


def _drop_repeated(entries: Sequence[_Entry]) -> int:
    """Keep the first of equal keys, mark the shards that share any, and count what is dropped."""
    keys = np.concatenate([entry.keys for entry in entries])
    _, first, group, count = np.unique(
        whole_keys(keys), return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(keys):
        return 0
    shared = count[group.ravel()] > 1
    keep = np.zeros(len(keys), np.bool_)
    keep[first] = True
    start = 0
    for entry in entries:
        here = slice(start, start + len(entry.keys))
        start += len(entry.keys)
        entry.repeats = bool(shared[here].any())
        entry.part = Part(entry.part.shard, entry.part.rows[keep[here]])
    return len(keys) - len(first)
