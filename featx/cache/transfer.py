"""`push_cache` and `pull_cache`: bring into a store, or here, what the other side lacks.

A store holds the files of a cache under their names. Shards never change, so that a name tells that
one is there. Features go before the datasets that count on them. Stopped at any instant, the next
transfer copies the rest.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import numpy as np

from featx.cache.layout import CacheLayout, list_shards
from featx.cache.manifest import Manifest, read_heading, read_manifest, write_manifest
from featx.cache.manifest_parts import ManifestPart, is_sound
from featx.cache.merging import (
    FeaturesGone,
    MergedDataset,
    merge_dataset,
    merge_space,
    possible_names,
    settle_dataset,
    skip,
)
from featx.cache.repair import Finding, check_is_cache
from featx.cache.shard import read_shard
from featx.cache.space import FeatureSpace, read_spec
from featx.exceptions import CacheError, CacheFormatError, StoreError
from featx.files.safe_hdf5 import hdf5_dataset, hdf5_item
from featx.files.stores import Entry, Store, as_address, is_bucket, shown

# Names that begin with a dot are nobody's, and could lead out of a folder.
_SHARD = re.compile(r"spaces/([^./\\][^/\\]*)/shards/[^./\\][^/\\]*\.h5")
_MANIFEST = re.compile(r"datasets/[^./\\][^/\\]*\.h5")
_AT_ONCE = 8
_BATCH_BYTES = 256 << 20  # that lie in a temporary folder at a time


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was copied between a cache and a store."""

    address: str
    files: int  # that were copied
    size_bytes: int  # of these
    shards_present: int  # that were there before
    datasets: tuple[MergedDataset, ...]
    skipped: tuple[Finding, ...]  # files that were left out, damaged for the most part


class _Course:
    """A transfer that is under way, and what was copied so far."""

    def __init__(self, layout: CacheLayout, store: Store, pool: ThreadPoolExecutor) -> None:
        self.layout, self.store, self.pool = layout, store, pool
        self.files = self.size_bytes = self.present = 0
        self.skipped: list[Finding] = []
        self._lock = threading.Lock()

    def write(self, name: str, file: Path) -> None:
        """Write a file into the store."""
        self.store.write(name, file)
        self.count(file)

    def fetch(self, name: str, folder: Path) -> Path:
        """Return a file of the store, copied into a folder."""
        target = folder / name.rpartition("/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        self.store.fetch(name, target)
        return target

    def count(self, file: Path) -> None:
        """Count a file that was copied, from any thread."""
        with self._lock:
            self.files += 1
            self.size_bytes += file.stat().st_size


def push_cache(layout: CacheLayout, address: str) -> Transfer:
    """Write what a cache has and a store lacks into the store."""
    check_is_cache(layout)

    def push(course: _Course) -> list[MergedDataset | Finding]:
        there = {entry.name for entry in course.store.entries()}
        # Read first: what is in the cache by then has the features of all their rows.
        manifests = list(_manifests(course))
        for folder in layout.space_folders():
            _push_space(course, folder, there)
        return [_push_dataset(course, manifest, there) for manifest in manifests]

    return _transfer(layout, address, push)


def pull_cache(layout: CacheLayout, address: str) -> Transfer:
    """Copy what a store has and a cache lacks into the cache, as `merge_cache` does."""

    def pull(course: _Course) -> list[MergedDataset | Finding]:
        with TemporaryDirectory(prefix="featx-pull-") as folder:
            other, used = CacheLayout(Path(folder)), list[FeatureSpace]()
            names = sorted(entry.name for entry in course.store.entries())
            if not any(_SHARD.fullmatch(name) or _MANIFEST.fullmatch(name) for name in names):
                raise CacheError(
                    f"no cache at {course.store.address()}: `featx cache push` makes one"
                )
            manifests = [name for name in names if _MANIFEST.fullmatch(name)]
            files = [course.fetch(name, other.datasets) for name in manifests]
            # Listed again: features of these datasets may have come meanwhile.
            shards: defaultdict[str, list[Entry]] = defaultdict(list)
            for entry in course.store.entries():
                if match := _SHARD.fullmatch(entry.name):
                    shards[match[1]].append(entry)
            for space, entries in shards.items():
                _pull_space(course, other.spaces / space, entries, used)
            done = [_pull_dataset(course, file, used) for file in files]
            course.skipped = [_of_store(course.store, found, folder) for found in course.skipped]
            return [
                _of_store(course.store, result, folder) if isinstance(result, Finding) else result
                for result in done
            ]

    while True:
        with suppress(FeaturesGone):
            return _transfer(layout, address, pull)


def _transfer(
    layout: CacheLayout, address: str, work: Callable[[_Course], list[MergedDataset | Finding]]
) -> Transfer:
    url = address if address.startswith("file:///") else as_address(address)
    if url is None or not (url.startswith("file:") or is_bucket(url)):
        raise CacheError(
            "expected the address of a cache in a store, such as s3://bucket/cache, gs://, az:// "
            f"or file:///, received {shown(url or address)!r}"
        )
    store = Store.below(url)
    with ThreadPoolExecutor(_AT_ONCE, "featx-transfer") as pool:
        course = _Course(layout, store, pool)
        done = work(course)
    return Transfer(
        address=store.address(),
        files=course.files,
        size_bytes=course.size_bytes,
        shards_present=course.present,
        datasets=tuple(result for result in done if isinstance(result, MergedDataset)),
        skipped=(*course.skipped, *(result for result in done if isinstance(result, Finding))),
    )


# Push


def _manifests(course: _Course) -> Iterator[Manifest]:
    for path in course.layout.manifests():
        try:
            yield read_manifest(path)
        except FileNotFoundError:
            continue  # removed meanwhile
        except CacheFormatError as error:
            course.skipped.append(skip(path, "manifest", error))


def _push_space(course: _Course, folder: Path, there: set[str]) -> None:
    waiting = list_shards(folder)
    if not waiting:
        return
    try:
        digest = read_spec(folder).digest
    except (CacheFormatError, FileNotFoundError) as error:
        course.skipped.append(skip(folder / "spec.json", "spec", error))
        return
    name = f"spaces/{folder.name}/spec.json"
    if name not in there:
        course.write(name, folder / "spec.json")

    def push(path: Path) -> None:
        try:
            read_shard(path, digest).check()
            course.write(f"spaces/{folder.name}/shards/{path.name}", path)
        except FileNotFoundError:
            pass  # its rows are in a new shard, which the next look finds
        except CacheFormatError as error:
            course.skipped.append(skip(path, "shard", error))
        except StoreError:
            if path.exists():
                raise

    seen: set[Path] = set()
    while waiting:
        new = [p for p in waiting if f"spaces/{folder.name}/shards/{p.name}" not in there]
        course.present += len(waiting) - len(new)
        list(course.pool.map(push, new))
        seen.update(waiting)
        waiting = [path for path in list_shards(folder) if path not in seen]


def _push_dataset(course: _Course, incoming: Manifest, there: set[str]) -> MergedDataset | Finding:
    """Write a manifest under the first name of NAME, NAME-2, NAME-3 that is free or its own."""
    with TemporaryDirectory(prefix="featx-push-") as folder:
        work = CacheLayout(Path(folder))
        for name, new in possible_names(incoming.name):
            stored = f"datasets/{work.dataset(name).name}"
            present = None
            if stored in there:
                try:
                    file = course.fetch(stored, work.datasets)
                    _bring_parts(course, file)
                    present = read_manifest(file)
                except CacheFormatError as error:
                    return skip(Path(course.store.address(stored)), "manifest", error)
            renamed = incoming.changed(name=name)
            outcome, manifest = settle_dataset(renamed, present, new=new)
            if manifest is not None:
                file = course.layout.dataset(incoming.name)
                with suppress(CacheFormatError, FileNotFoundError):  # changed since it was read
                    _lend_parts(course.layout, read_heading(file).parts, work)
                _write_dataset(course, write_manifest(work, manifest), stored, there)
            if outcome:
                return MergedDataset(incoming.name, name, outcome)
    raise AssertionError("there is always another name")


def _write_dataset(course: _Course, file: Path, stored: str, there: set[str]) -> None:
    """Write a manifest into the store, after those of its parts that are not there."""
    for part in read_heading(file).parts:
        name = f"parts/{part.file_name}"
        if name not in there:
            course.write(name, file.parent.parent / name)
            there.add(name)
    course.write(stored, file)


def _bring_parts(course: _Course, file: Path) -> list[Path]:
    """Put the parts of a fetched manifest beside it; return those that came from the store."""
    other, fetched = CacheLayout(file.parent.parent), []
    parts = read_heading(file).parts
    _lend_parts(course.layout, parts, other)
    for part in set(parts):
        name = f"parts/{part.file_name}"
        if not (other.root / name).exists() and course.store.entry(name) is not None:
            fetched.append(course.fetch(name, other.parts))
    return fetched


def _lend_parts(layout: CacheLayout, parts: Iterable[ManifestPart], other: CacheLayout) -> None:
    """Let another cache use the parts that this one has, without a copy where links can be made."""
    other.parts.mkdir(parents=True, exist_ok=True)
    for part in parts:
        here, there = layout.parts / part.file_name, other.parts / part.file_name
        if is_sound(here, part) and not there.exists():
            try:
                there.symlink_to(here.resolve())
            except OSError:
                shutil.copyfile(here, there)


# Pull


def _pull_space(
    course: _Course, folder: Path, shards: Sequence[Entry], used: list[FeatureSpace]
) -> None:
    spec, name = folder / "spec.json", f"spaces/{folder.name}/spec.json"
    if course.store.entry(name) is not None:
        course.fetch(name, folder)
    try:
        space = FeatureSpace(course.layout, read_spec(folder))
    except (CacheFormatError, FileNotFoundError) as error:
        course.skipped.append(skip(spec, "spec", error))
        return
    if not (space.folder / "spec.json").exists():
        course.count(spec)
    names = {path.name for path in list_shards(space.folder)}
    new = [entry for entry in shards if entry.name.rpartition("/")[2] not in names]
    if names:
        used.append(space)
        known = course.pool.map(lambda entry: _has_all(space, course.store, entry), new)
        new = [entry for entry, there in zip(new, known, strict=True) if not there]
    course.present += len(shards) - len(new)
    for batch in _batches(new):
        files = list(course.pool.map(lambda e: course.fetch(e.name, folder / "shards"), batch))
        course.skipped += merge_space(course.layout, folder, used, Counter())
        for file in files:
            course.count(file)
            file.unlink()


def _pull_dataset(
    course: _Course, file: Path, used: Sequence[FeatureSpace]
) -> MergedDataset | Finding:
    fetched: list[Path] = []
    with suppress(CacheFormatError):  # which the merge finds, too
        fetched = _bring_parts(course, file)
    result = merge_dataset(course.layout, file, used)
    if isinstance(result, MergedDataset) and result.outcome != "present":
        for path in (file, *fetched):
            course.count(path)
    for path in fetched:
        path.unlink()
    return result


def _of_store(store: Store, finding: Finding, folder: str) -> Finding:
    """Return a finding of a file in a temporary folder as one of the file in the store."""
    address = str(Path(store.address()))
    return replace(
        finding,
        path=Path(str(finding.path).replace(folder, address)),
        reason=finding.reason.replace(folder, address),
    )


def _has_all(space: FeatureSpace, store: Store, entry: Entry) -> bool:
    """Return whether a space has the rows of a shard, whose keys alone are read."""
    import h5py

    # Shards are put together and shared between caches, so that rows come under other names.
    try:
        with store.open(entry.name) as parts, h5py.File(parts, "r") as file:
            dataset = hdf5_dataset(file, "key")
            if dataset.ndim != 2 or dataset.shape[1] != 32 or dataset.nbytes > entry.size:
                return False
            keys = np.ascontiguousarray(dataset[()], np.uint8)
            taps = tuple(map(unquote, hdf5_item(file, "features")))
    # Whatever is wrong, it is found when the shard is read as a whole.
    except Exception:
        return False
    space.touch(taps, keys)
    return bool(space.has(taps, keys).all())


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    room = _BATCH_BYTES
    for entry in entries:
        batch.append(entry)
        room -= entry.size
        if room <= 0:
            yield batch
            batch, room = [], _BATCH_BYTES
    if batch:
        yield batch
