"""What is known of a dataset before, during and after a run: stats, keys, and the manifest."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.cache.columns import Strings
from featx.cache.datasets import rewrite_dataset
from featx.cache.editing import kept_rows, later_edits, replay_edits, restated, with_labels
from featx.cache.layout import FileVersion
from featx.cache.manifest import (
    DUPLICATE,
    OK,
    PENDING,
    Block,
    Manifest,
    read_manifest,
    same_manifest,
)
from featx.cache.space import FeatureSpace, open_space
from featx.exceptions import CacheFormatError, CacheWriteError, DatasetError
from featx.extraction.job import Job
from featx.extraction.pipeline import Ledger, Stage
from featx.files.identity import STAMP, file_stamps, is_settled, whole_keys
from featx.images.dataset import ImageDataset
from featx.images.files import PackedImages

_LOG = logging.getLogger("featx")


class DatasetRecord:
    """What is known of a dataset before, during and after a run: its images, keys and manifest."""

    def __init__(
        self, job: Job, name: str | None = None, shard: tuple[int, int] | None = None
    ) -> None:
        assert job.layout is not None
        self._layout = job.layout
        self._blocks = job.blocks
        # What a name stands for has its edits already; what a folder says has not.
        self._replay = job.named is None
        self._automatic = job.named is None and name is None
        images = job.images()
        chosen = name if job.named is None else job.named.name
        self._find(images, chosen)
        self._paths = images.paths
        self.images = _without_removed(images, self._earlier) if self._replay else images
        self._read_ns = time.time_ns()
        self._stats = _stat(self.images)
        self.ledger = Ledger.blank(len(self.images))
        self.trusted = np.zeros(len(self.images), np.bool_)
        self.wanted = None if shard is None else _in_shard(self.images.paths, *shard)
        if self._earlier is not None:
            self._trust(self._earlier)

    def _find(self, images: ImageDataset, name: str | None) -> None:
        """Settle the name of the dataset, and read what an earlier run wrote under it."""
        self.name, root = name or images.name, _root(images)
        self._version: FileVersion | None = FileVersion(self._layout.dataset(self.name))
        self._earlier = _read_earlier(self._version.path)
        if self._earlier is None:
            return
        if self._earlier.source == "imported" and (name or not root):
            self.close()
            raise DatasetError(
                f"the cache {self._layout.root} has a dataset {self.name!r} of imported features: "
                "choose another name with --name NAME (name=), or `featx dataset rename` that one"
            )
        if not name and self._earlier.root != root:
            self.close()
            digest = hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()
            self._find(images, f"{self.name}-{digest[:6]}")

    def _trust(self, earlier: Manifest) -> None:
        """Take over the keys of files that have not changed since they were read."""
        rows = earlier.path.find(self.images.paths)
        known = rows >= 0
        before = np.stack([getattr(earlier, part) for part in STAMP], axis=1)
        same = np.zeros(len(rows), np.bool_)
        same[known] = (before[rows[known]] == self._stats[known]).all(axis=1)
        same &= self._stats[:, 0] >= 0
        read = np.isin(earlier.status, (OK, DUPLICATE, PENDING)) & earlier.key.any(axis=1)
        same[known] &= read[rows[known]]
        self.trusted = same
        self.ledger.key[same] = earlier.key[rows[same]]

    def covered(self) -> bool:
        """Return whether the dataset has all blocks, so that no collection takes their rows."""
        return self._earlier is not None and set(self._blocks) <= set(self._earlier.blocks)

    def save(self, stages: Sequence[Stage], *, complete: bool = True) -> Manifest:
        """Write the manifest, and return it; it promises no row without features.

        Of a run that is not complete, it names the rows that have features by now, and is not
        written where that would lose any of the one that is there. `FeaturesGone` if features of a
        complete run were removed meanwhile: the ledger says of which rows.
        """
        with closing(self):
            while True:
                try:
                    return self._write(stages, complete)
                except _NameTaken:
                    self.close()
                    self._find(self.images, None)

    def _write(self, stages: Sequence[Stage], complete: bool) -> Manifest:
        fresh = self._fresh()
        spaces = [stage.store for stage in stages if isinstance(stage.store, FeatureSpace)]
        used: list[FeatureSpace] = []
        earlier = self._earlier
        if self.wanted is not None and earlier and not set(earlier.blocks) <= set(self._blocks):
            view = _with_others(fresh, earlier, ~self.wanted)
            view = self._promised(view, stages, complete)
            if (view.status == PENDING).any():
                # The rows keep the features that they have until all have the new ones too.
                return view

        def make(current: Manifest | None) -> Manifest:
            self._check_name(fresh, current)
            used[:] = spaces
            whole = fresh
            if self.wanted is not None and current is not None:
                whole = _with_others(fresh, current, ~self.wanted)
            return self._caught_up(self._promised(whole, stages, complete), current, used)

        def worse(manifest: Manifest, current: Manifest | None) -> bool:
            return (not complete or not len(manifest.usable)) and _loses(manifest, current)

        try:
            return rewrite_dataset(
                self._layout,
                self.name,
                make,
                seen=None if self._version is None else (self._version, self._earlier),
                still=lambda: all(space.intact() for space in used),
                worse=worse,
            )
        except CacheWriteError:
            # New stamps save a reading of the files and nothing else: a cache that has all
            # features need not be writable.
            if self._earlier is None:
                raise
            same = make(self._earlier)
            if not same_manifest(same, self._earlier, but=STAMP):
                raise
            return same

    def _fresh(self) -> Manifest:
        """Return what the images and the ledger say."""
        images, ledger = self.images, self.ledger
        stats = self._stats
        # Their time stamps cannot tell a later change from none: they are to be read again.
        stats[~is_settled(stats, self._read_ns), STAMP.index("mtime_ns")] = -1
        unlabelled = np.full(len(images), -1)
        return Manifest(
            name=self.name,
            root=_root(images),
            classes=images.classes,
            path=images.paths,
            label=np.asarray(unlabelled if images.labels is None else images.labels, np.int32),
            group=images.groups or Strings.blank(len(images)),
            split=images.splits or Strings.blank(len(images)),
            reason=ledger.reason,
            key=ledger.key,
            status=ledger.status,
            strays=tuple(images.strays),
            blocks=self._blocks,
            source=_source(images),
            column=images.column,
            edits=self._earlier.edits if self._earlier else (),
            **dict(zip(STAMP, stats.T, strict=True)),
        )

    def _promised(self, fresh: Manifest, stages: Sequence[Stage], complete: bool) -> Manifest:
        """Return a fresh manifest with only those rows as done whose features are there by now."""
        rows = fresh.usable
        present = []
        for stage in stages:
            if isinstance(stage.store, FeatureSpace):
                stage.store.refresh()
            present.append(~stage.missing(fresh.key[rows]))
        lost = rows[~np.all(present, axis=0)]
        if self.wanted is not None and complete:
            left = ~self.wanted[lost]  # to the runs of other shares
            status = fresh.status.copy()
            status[lost[left]] = PENDING
            fresh, lost = restated(fresh.changed(status=status)), lost[~left]
        if not lost.size:
            return _with_reasons(fresh)
        if complete:
            self.ledger.status[lost] = PENDING
            self.trusted = np.isin(self.ledger.status, (OK, DUPLICATE))
            raise FeaturesGone
        # A backbone without any features is left out, so that those of another are a dataset.
        begun = [number for number, here in enumerate(present) if here.any()]
        status = fresh.status.copy()
        if begun:
            lost = rows[~np.all([present[number] for number in begun], axis=0)]
        status[lost] = PENDING
        spaces = {stages[number].spec.name for number in begun}
        blocks = tuple(block for block in fresh.blocks if block.space in spaces)
        return restated(_with_reasons(fresh.changed(status=status, blocks=blocks)))

    def _check_name(self, fresh: Manifest, current: Manifest | None) -> None:
        """Refuse to replace a dataset of other images that came in under this name meanwhile."""
        before = self._earlier
        if current is None or (current.root == fresh.root and (fresh.root or not self._replay)):
            return
        if (
            before is not None
            and before.root == current.root
            and (current.root or _share(current, before))
        ):
            return  # it was there, and the name was chosen all the same
        if current.root == fresh.root and _share(current, fresh):
            return
        if self._automatic and fresh.root:
            raise _NameTaken
        raise DatasetError(
            f"another run wrote a dataset {self.name!r} of other images while this one was at "
            "work. The features are in the cache: run this again with --name NAME (name=), which "
            "computes nothing again"
        )

    def close(self) -> None:
        """Let go of the manifest that was read; `save` does."""
        if self._version is not None:
            self._version.close()
        self._version = None

    def _caught_up(
        self, fresh: Manifest, current: Manifest | None, used: list[FeatureSpace]
    ) -> Manifest:
        """Return a fresh manifest with what others did to the dataset since this run began."""
        if current is None or current.root != fresh.root:
            current = self._earlier
        manifest = fresh.changed(blocks=tuple(self._all_blocks(fresh, current, used)))
        if current is None or not (current.edits or manifest.edits):
            return manifest
        if self._replay:
            whole = _with_unread(manifest, current, self._paths)
            return _read_only(replay_edits(whole, current), manifest)
        later = later_edits(self._earlier, current)
        raw = current.before_edits
        if raw is not None:
            raw = _updated(raw, manifest)
            if later is None:  # an edit was taken back meanwhile
                return _read_only(replay_edits(raw, current), manifest)
        edited = replay_edits(manifest, later or current.changed(edits=()))
        return edited.changed(edits=(*manifest.edits, *edited.edits), unedited=raw)

    def _all_blocks(
        self, fresh: Manifest, earlier: Manifest | None, used: list[FeatureSpace]
    ) -> list[Block]:
        """Return the blocks asked for, and those of earlier runs that have all the images."""
        blocks = list(fresh.blocks)
        keys = fresh.key[fresh.usable]
        for block in earlier.blocks if earlier else ():
            if block in blocks:
                continue
            try:
                space = open_space(self._layout, block.space)
            except CacheFormatError:
                continue  # gone or damaged, which is for `featx cache verify` to say
            if space.has([block.tap], keys).all():
                blocks.append(block)
                used.append(space)
        return blocks


def _in_shard(paths: Sequence[str], number: int, count: int) -> NDArray[np.bool_]:
    """Return which paths are in one of several shares, whatever other paths there are."""
    check_shard(number, count)
    sums = np.fromiter((zlib.crc32(os.fsencode(path)) for path in paths), np.uint32, len(paths))
    return np.asarray(sums % count == number - 1)


def check_shard(number: int, count: int) -> None:
    """Refuse a share that there is not."""
    if not 1 <= number <= count:
        raise DatasetError(
            "expected a share from 1 to their number, such as --shard 1/4 (shard=(1, 4)), "
            f"received {number}/{count}"
        )


def _with_others(fresh: Manifest, current: Manifest, others: NDArray[np.bool_]) -> Manifest:
    """Return a manifest with what runs of other shares wrote of `others`, which this run left."""
    here = np.flatnonzero(others & (fresh.status == PENDING))
    there = current.path.find(fresh.path.take(here))
    here, there = here[there >= 0], there[there >= 0]
    if not len(here):
        return fresh
    columns: dict[str, NDArray[np.generic]] = {}
    for name in ("key", "status", *STAMP):
        columns[name] = getattr(fresh, name).copy()
        columns[name][here] = getattr(current, name)[there]
    reasons = fresh.reason.changed(here, current.reason.take(there))
    return fresh.changed(reason=reasons, **columns)


def _with_unread(fresh: Manifest, earlier: Manifest, paths: Sequence[str]) -> Manifest:
    """Return what was read, and the rows of files still there that an edit left out unread."""
    raw, there = earlier.before_edits, Strings.of(paths)
    if raw is None:
        return fresh
    rows = np.flatnonzero((there.find(raw.path) >= 0) & (fresh.path.find(raw.path) < 0))
    if not len(rows):
        return fresh
    unread = raw.take(rows)
    whole = fresh.joined(unread)
    labels = [*fresh.label_names, *unread.label_names]
    order = np.argsort(there.find(whole.path), kind="stable")
    return restated(with_labels(whole, labels).take(order))


def _updated(raw: Manifest, fresh: Manifest) -> Manifest:
    """Return the rows before edits with what was read of their files since."""
    rows = fresh.path.find(raw.path)
    known = np.flatnonzero(rows >= 0)
    columns: dict[str, NDArray[np.generic]] = {}
    for name in ("key", "status", *STAMP):
        columns[name] = getattr(raw, name).copy()
        columns[name][known] = getattr(fresh, name)[rows[known]]
    reasons = raw.reason.changed(known, fresh.reason.take(rows[known]))
    return restated(raw.changed(reason=reasons, **columns))


def _read_only(edited: Manifest, fresh: Manifest) -> Manifest:
    """Return an edited dataset in which only rows that were read count as done."""
    rows = edited.usable[~_are_in(edited, fresh)]
    if not len(rows):
        return edited
    status = edited.status.copy()
    status[rows] = PENDING
    return restated(_with_reasons(edited.changed(status=status)))


class FeaturesGone(Exception):  # noqa: N818
    """Features that a run counted on were removed while it was at work: run again."""


class _NameTaken(Exception):  # noqa: N818
    """Another folder has the name of a dataset by now."""


def _loses(manifest: Manifest, current: Manifest | None) -> bool:
    """Return whether a manifest lacks something that another has, or has nothing at all."""
    if current is None:
        return not len(manifest.usable)
    return not (set(current.blocks) <= set(manifest.blocks) and _are_in(current, manifest).all())


def _are_in(manifest: Manifest, other: Manifest) -> NDArray[np.bool_]:
    """Return which of the rows that are done are done in another dataset, too."""
    done = other.path.take(other.usable)
    return done.find(manifest.path.take(manifest.usable)) >= 0


def _share(*manifests: Manifest) -> bool:
    """Return whether two datasets have an image in common."""
    keys = [whole_keys(manifest.key[manifest.key.any(axis=1)]) for manifest in manifests]
    return bool(np.isin(keys[0], keys[1]).any())


def _with_reasons(manifest: Manifest) -> Manifest:
    rows = np.flatnonzero((manifest.status == PENDING) & ~manifest.reason.filled())
    reasons = manifest.reason.changed(rows, ["not reached"] * len(rows))
    return manifest.changed(reason=reasons)


def _without_removed(images: ImageDataset, earlier: Manifest | None) -> ImageDataset:
    """Return the images without those that edits of the dataset removed."""
    if earlier is None or not earlier.edits:
        return images
    return replace(
        images.subset(kept_rows(earlier, images.paths)),
        strays=images.strays,
        stray_reasons=images.stray_reasons,
        empty_classes=images.empty_classes,
    )


def _stat(images: ImageDataset) -> NDArray[np.int64]:
    """Return the stamp of each image, shape (n, 5), -1 where there is none."""
    if isinstance(images.arrays, PackedImages):
        return images.arrays.stamps()
    if images.arrays is not None:
        return np.full((len(images), len(STAMP)), -1, np.int64)
    root = str(images.root or "")
    return file_stamps(os.path.join(root, path) for path in images.paths)


def _source(images: ImageDataset) -> str:
    if images.arrays is None:
        return "files"
    return "arrays" if images.in_memory else "packed"


def _root(images: ImageDataset) -> str:
    if isinstance(images.root, Path):
        return str(images.root.resolve())
    return images.root or ""


def _read_earlier(path: Path) -> Manifest | None:
    """Return what an earlier run wrote; None where nothing is there, or nothing sound."""
    try:
        return read_manifest(path)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        # Made again from the images, which are here; the features are found by their keys.
        _LOG.warning("replacing a damaged manifest: %s", error)
        return None
