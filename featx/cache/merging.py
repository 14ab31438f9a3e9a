"""`merge_cache`: bring the features and datasets of another cache into this one.

The other cache is only read. Every byte is compared with its digest on the way; what is damaged is
left out and named. Run again, it finds everything here and copies nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from featx.cache.layout import CacheLayout, FileVersion, Replaced, list_shards, publish, reading
from featx.cache.manifest import Manifest, read_manifest, same_manifest, write_manifest
from featx.cache.repair import Finding, check_is_cache, error_kind
from featx.cache.shard import Part, new_shard, read_shard, write_parts
from featx.cache.space import FeatureSpace, read_spec
from featx.exceptions import CacheError, CacheFormatError
from featx.files.identity import STAMP

# Where the images lie, and what the file system says of them, is each machine's own.
_LOCAL = {"root", "blocks", *STAMP}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MergedDataset:
    """What became of a dataset of the other cache."""

    name: str  # its name there
    stored_as: str  # its name here: another one, where the name was taken by other images
    outcome: str  # copied, present (it was here), or extended (now has the features of both)


@dataclass(frozen=True, slots=True)
class Merge:
    """What came from another cache."""

    source: Path
    rows_copied: int
    rows_present: int
    shards_written: int
    size_bytes: int  # of the rows that were copied
    datasets: tuple[MergedDataset, ...]
    skipped: tuple[Finding, ...]  # files that were left out, damaged for the most part


def merge_cache(layout: CacheLayout, other: CacheLayout) -> Merge:
    """Copy what another cache has and this one lacks; stopped at any instant, run it again."""
    check_is_cache(other)
    if layout.root.resolve() == other.root.resolve():
        raise CacheError(f"{other.root} cannot be merged into itself: name another cache")
    used: list[FeatureSpace] = []
    copied = Counter[str]()
    skipped = [
        finding
        for folder in other.space_folders()
        for finding in merge_space(layout, folder, used, copied)
    ]
    for space in used:
        space.write_index()
    # Datasets last: one that is here has its features here.
    try:
        datasets = [merge_dataset(layout, path, used) for path in other.manifests()]
    except FeaturesGone:
        return merge_cache(layout, other)
    return Merge(
        source=other.root,
        rows_copied=copied["rows"],
        rows_present=copied["present"],
        shards_written=copied["shards"],
        size_bytes=copied["bytes"],
        datasets=tuple(result for result in datasets if isinstance(result, MergedDataset)),
        skipped=(*skipped, *(result for result in datasets if isinstance(result, Finding))),
    )


def skip(path: Path, damaged: str, error: Exception) -> Finding:
    """Return what is said of a file that is left out."""
    step = "`featx cache verify` on that cache says what to do; then run this again"
    return Finding(path, error_kind(error, damaged), str(error), step)


def merge_space(
    layout: CacheLayout, folder: Path, used: list[FeatureSpace], copied: Counter[str]
) -> Iterator[Finding]:
    """Copy what a space of another cache has and this cache lacks; yield what is left out."""
    waiting = list_shards(folder)
    if not waiting:
        return
    spec_path = folder / "spec.json"
    try:
        spec = read_spec(folder)
        spec_path = layout.space(spec) / "spec.json"
        space = FeatureSpace(layout, spec)
    except (CacheFormatError, FileNotFoundError) as error:
        yield skip(spec_path, "spec", error)
        return
    seen: set[Path] = set()
    while waiting:
        for path in waiting:
            try:
                _merge_shard(space, path, copied)
            except FileNotFoundError:
                continue  # its rows are in a new shard, which the next look finds
            except CacheFormatError as error:
                yield skip(path, "shard", error)
        seen.update(waiting)
        waiting = [path for path in list_shards(folder) if path not in seen]
        space.refresh()
    used.append(space)


def _merge_shard(space: FeatureSpace, path: Path, copied: Counter[str]) -> None:
    """Copy the rows of a shard of which this cache lacks a tap, and count them."""
    shard = read_shard(path, space.spec.digest)
    shard.check()
    taps, keys = tuple(shard.taps), shard.keys.map()
    space.touch(taps, keys)
    new = np.flatnonzero(~space.has(taps, keys))
    written = 0
    if len(new):
        space.write_spec()
        if len(new) == len(shard):
            _copy_shard(space, path)
            written = 1
        else:
            written = len(write_parts(space.layout, space.folder, [Part(shard, new)]))
    copied.update(rows=len(new), present=len(shard) - len(new), shards=written)
    copied.update(bytes=len(new) * shard.row_bytes)


def _copy_shard(space: FeatureSpace, path: Path) -> None:
    def copy(temporary: Path) -> None:
        with temporary.open("xb") as file:
            for chunk in _read_chunks(path):
                file.write(chunk)
        # This finds errors of the copy, too.
        read_shard(temporary, space.spec.digest).check()

    # Under its name, which tells later that it is here.
    target = space.folder / "shards" / path.name
    publish(space.layout, new_shard(space.folder) if target.exists() else target, copy)


def _read_chunks(path: Path) -> Iterator[bytes]:
    # Errors in here are the source's; errors of writing are the target's.
    with reading(path), path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class FeaturesGone(Exception):  # noqa: N818
    """A collection removed shards that a dataset was going to count on."""


def merge_dataset(
    layout: CacheLayout, path: Path, used: Sequence[FeatureSpace]
) -> MergedDataset | Finding:
    """Copy a manifest under the first name of NAME, NAME-2, NAME-3 that is free or its own."""
    try:
        incoming = read_manifest(path)
    except (CacheFormatError, FileNotFoundError) as error:
        return skip(path, "manifest", error)
    names = possible_names(incoming.name)
    name, new = next(names)

    def still() -> bool:
        return all(space.intact() for space in used)

    while True:
        if not still():
            raise FeaturesGone
        here = layout.dataset(name)
        with FileVersion(here) as version, suppress(Replaced):
            try:
                present = read_manifest(here)
            except FileNotFoundError:
                present = None
            except CacheFormatError as error:
                return skip(here, "manifest", error)
            outcome, manifest = settle_dataset(incoming.changed(name=name), present, new=new)
            if manifest is not None:
                write_manifest(layout, manifest, move=partial(version.move, still=still))
            if outcome:
                return MergedDataset(incoming.name, name, outcome)
            name, new = next(names)


def possible_names(name: str) -> Iterator[tuple[str, bool]]:
    """Yield the names that a dataset may have where others have its own, and which may be new.

    One that got its number elsewhere may be here without it.
    """
    stem, dash, number = name.rpartition("-")
    if dash and stem and number.isdigit():
        yield stem, False
    yield name, True
    for more in count(2):
        yield f"{name}-{more}", True


def settle_dataset(
    incoming: Manifest, present: Manifest | None, *, new: bool
) -> tuple[str, Manifest | None]:
    """Return what becomes of a dataset beside one of its name, and what is written for it.

    The first is ``""`` where the other is a dataset of other images, or there is none and it may
    not be `new`.
    """
    if present is None:
        return ("copied", incoming) if new else ("", None)
    # The folders of the images may differ.
    if not same_manifest(present, incoming, but=_LOCAL):
        return "", None
    more = tuple(block for block in incoming.blocks if block not in present.blocks)
    if not more:
        return "present", None
    return "extended", present.changed(blocks=(*present.blocks, *more))
