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

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.collection_plan import Group, Plan, is_young, plan_space
from featx.cache.findings import check_is_cache, list_folder
from featx.cache.integrity import check_shard
from featx.cache.inventory import list_shards
from featx.cache.layout import CacheLayout, publish, writing
from featx.cache.manifest import read_manifest
from featx.cache.replacing import locked
from featx.cache.rewriting import write_parts
from featx.exceptions import CacheError, CacheFormatError
from featx.files.stamps import stamp_of

DAY_S = 86_400.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class SpaceCollection:
    """What goes from a space.

    Parameters
    ----------
    space : str
        Name of its folder.
    used : bool
        Whether a dataset names it.
    removed : bool
        Whether the whole folder goes.
    rows : int
        Number of rows that stay, those of young and damaged shards left out.
    rows_unused, rows_repeated : int
        Rows that go: of images in no dataset, and copies of rows that stay.
    size_bytes : int
        Bytes of the rows that go.
    shards_removed, shards_written : int
        Number of files that go, and of those that take their place.
    shards_young : int
        Number of shards that are left alone for their age.
    damaged : dict of str to str
        Shards that are left alone for their damage, and what it is.
    """

    space: str
    used: bool
    removed: bool
    rows: int
    rows_unused: int
    rows_repeated: int
    size_bytes: int
    shards_removed: int
    shards_written: int
    shards_young: int
    damaged: dict[str, str]


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed, or would remove.

    Parameters
    ----------
    cache : Path
        The cache.
    dry_run : bool
        Whether nothing was changed.
    older_than_s : float
        Age from which shards were looked at, in seconds.
    spaces : tuple of SpaceCollection
        One entry a space.
    """

    cache: Path
    dry_run: bool
    older_than_s: float
    spaces: tuple[SpaceCollection, ...]


Stamp = tuple[tuple[str | int, ...], ...]


@dataclass(slots=True)
class _Usage:
    """Which keys the datasets of a cache use, by space."""

    layout: CacheLayout
    stamp: Stamp = ()
    keys: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)

    def read(self) -> None:
        """Read every manifest.

        Raises
        ------
        CacheError
            If one cannot be read.
        """
        self.stamp, self.keys = _stamp(self.layout), {}
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
            known = manifest.key[manifest.key.any(axis=1)]
            for space in {block.space for block in manifest.blocks}:
                self.keys.setdefault(space, []).append(known)

    def changed(self) -> bool:
        """Return whether a dataset was written or removed since they were read."""
        return _stamp(self.layout) != self.stamp

    def of(self, space: str) -> NDArray[np.uint8]:
        """Return the keys that are used of a space, shape (m, 32)."""
        return np.concatenate([np.empty((0, 32), np.uint8), *self.keys.get(space, ())])


def _stamp(layout: CacheLayout) -> Stamp:
    stamp = []
    for path in list_folder(layout.datasets):
        with suppress(FileNotFoundError):
            if path.suffix == ".h5":
                stamp.append((path.name, *stamp_of(path.stat())))
    return tuple(stamp)


def collect_garbage(
    layout: CacheLayout, *, older_than_s: float = DAY_S, dry_run: bool = True
) -> Collection:
    """Remove spaces and rows that no dataset uses, and put shards under 8 MiB together.

    A row is used when a dataset that names its space has an image with its key. Rows that stay keep
    every byte. Stopped at any instant, it can be run again.

    Parameters
    ----------
    layout : CacheLayout
        The cache.
    older_than_s : float, default 86400.0
        Shards younger than this, in seconds, are left alone: an extraction writes its dataset last.
    dry_run : bool, default True
        Only say what would go.

    Raises
    ------
    CacheError
        If there is no cache, or a manifest cannot be read, so that its use is not known.
    CacheWriteError
        If a file cannot be written or removed.
    """
    check_is_cache(layout)
    usage = _Usage(layout)
    usage.read()
    spaces = []
    for folder in list_folder(layout.spaces):
        if not folder.is_dir():
            continue
        if dry_run:
            plan = plan_space(folder, usage.of(folder.name), older_than_s=older_than_s)
            used = folder.name in usage.keys
            goes = not used and _may_go(folder, older_than_s, but=plan)
            spaces.append(_report(folder, plan, plan.groups, used=used, removed=goes))
        else:
            spaces.append(_collect_space(layout, folder, usage, older_than_s))
    return Collection(layout.root, dry_run, older_than_s, tuple(spaces))


def _collect_space(
    layout: CacheLayout, folder: Path, usage: _Usage, older_than_s: float
) -> SpaceCollection:
    """Carry out the plan of a space; make another one when something came in between."""
    done: list[Group] = []
    damaged: dict[str, str] = {}
    for _ in range(_ATTEMPTS):
        if usage.changed():
            usage.read()
        plan = plan_space(folder, usage.of(folder.name), older_than_s=older_than_s, leave=damaged)
        again = False
        for group in plan.groups:
            try:
                carried_out = _carry_out(layout, folder, group, usage, older_than_s)
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
    used = folder.name in usage.keys
    removed = False
    if not used:
        with locked(layout.datasets):
            removed = (
                not usage.changed()
                and _may_go(folder, older_than_s)
                and _remove_folder(layout, folder)
            )
    plan.damaged.update(damaged)
    return _report(folder, plan, done, used=used, removed=removed)


def _carry_out(
    layout: CacheLayout, folder: Path, group: Group, usage: _Usage, older_than_s: float
) -> bool:
    """Publish what stays of a group, remove the rest; False when datasets changed meanwhile."""
    written = write_parts(layout, folder, group.digest, group.parts)
    old = [shard.path for shard in group.old]
    with locked(layout.datasets):
        changed = usage.changed() or _reused(old, older_than_s)
        for path in written if changed else old:
            with writing(path):
                path.unlink(missing_ok=True)
    return not changed


def _reused(paths: Sequence[Path], older_than_s: float) -> bool:
    """Return whether an extraction has begun to count on one of some shards."""
    for path in paths:
        with suppress(FileNotFoundError):
            if is_young(path, older_than_s):
                return True
    return False


def _damage(group: Group) -> dict[str, str]:
    found = {}
    for shard in group.old:
        try:
            check_shard(shard)
        except FileNotFoundError:
            continue
        except CacheFormatError as error:
            found[shard.path.name] = str(error)
    return found


def _report(
    folder: Path, plan: Plan, groups: Sequence[Group], *, used: bool, removed: bool
) -> SpaceCollection:
    repeated = sum(group.rows_repeated for group in groups)
    return SpaceCollection(
        space=folder.name,
        used=used,
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


def _may_go(folder: Path, older_than_s: float, *, but: Plan | None = None) -> bool:
    """Return whether nothing is left in a space, or would be once a plan was carried out."""
    going = {shard.path for group in but.groups for shard in group.old} if but else set()
    names = {path.name for path in list_folder(folder)}
    try:
        young = "spec.json" in names and is_young(folder / "spec.json", older_than_s)
    except FileNotFoundError:
        return False
    shards = set(list_folder(folder / "shards"))
    return not young and not shards - going and names <= {"spec.json", "shards"}


def _remove_folder(layout: CacheLayout, folder: Path) -> bool:
    """Remove an empty space, unless somebody begins to write into it."""
    path = folder / "spec.json"
    with writing(folder):
        text = path.read_bytes() if path.exists() else None
        try:
            with suppress(FileNotFoundError):
                (folder / "shards").rmdir()
            path.unlink(missing_ok=True)
            folder.rmdir()
            if (known := layout.checked / f"{folder.name}.json").exists():
                known.unlink(missing_ok=True)
        except FileNotFoundError:
            return True
        except OSError:
            # Not empty any more: a shard came in, which needs its specification.
            if text is not None and list_shards(folder) and not path.exists():
                publish(layout, path, lambda temporary: _write_bytes(temporary, text))
            return False
    return True


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
