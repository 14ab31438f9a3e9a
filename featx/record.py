"""What is known of a dataset before, during and after a run: stats, keys, and the manifest."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.cache.datasets import rewrite_dataset
from featx.cache.editing import later_edits, replay_edits
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import (
    DUPLICATE,
    FAILED,
    OK,
    PENDING,
    Block,
    Manifest,
    read_manifest,
    same_manifest,
)
from featx.cache.replacing import FileVersion
from featx.cache.space import open_space
from featx.exceptions import CacheFormatError, CacheWriteError
from featx.file_stamps import STAMP, is_settled, stamp_of
from featx.images.dataset import ImageDataset
from featx.meter import Meter
from featx.pipeline import Stage
from featx.runner import Ledger

__all__ = ["DatasetRecord", "find_earlier", "run_report"]

_LOG = logging.getLogger("featx")


class DatasetRecord:
    """What is known of a dataset before, during and after a run."""

    def __init__(
        self,
        layout: CacheLayout,
        dataset: ImageDataset,
        name: str,
        blocks: tuple[Block, ...],
        earlier: Manifest | None,
        *,
        version: FileVersion | None = None,
        replay: bool = False,
    ) -> None:
        self._layout = layout
        self._dataset = dataset
        self.name = name
        self._blocks = blocks
        self._earlier = earlier
        self._version = version or FileVersion(layout.dataset(name))
        self._replay = replay
        self._read_ns = time.time_ns()
        self._stats = _stat(dataset)
        self.ledger = Ledger.blank(len(dataset))
        self.trusted = np.zeros(len(dataset), np.bool_)
        if earlier is not None:
            self._trust(earlier)

    def _trust(self, earlier: Manifest) -> None:
        """Take over the keys of files that have not changed since they were read."""
        row_of = {path: row for row, path in enumerate(earlier.path)}
        rows = np.array([row_of.get(path, -1) for path in self._dataset.paths], np.int64)
        known = rows >= 0
        before = np.stack([getattr(earlier, part) for part in STAMP], axis=1)
        same = np.zeros(len(rows), np.bool_)
        same[known] = (before[rows[known]] == self._stats[known]).all(axis=1)
        same &= self._stats[:, 0] >= 0
        same[known] &= np.isin(earlier.status[rows[known]], (OK, DUPLICATE))
        self.trusted = same
        self.ledger.key[same] = earlier.key[rows[same]]

    def save(self) -> Manifest:
        """Write the manifest unless it would say the same as before, and return it."""
        dataset, ledger = self._dataset, self.ledger
        stats = self._stats
        # Their time stamps cannot tell a later change from none: they are to be read again.
        stats[~is_settled(stats, self._read_ns), STAMP.index("mtime_ns")] = -1
        made = Manifest(
            name=self.name,
            root=_root(dataset),
            classes=dataset.classes,
            path=list(dataset.paths),
            label=_labels(dataset),
            group=list(dataset.groups or [""] * len(dataset)),
            split=list(dataset.splits or [""] * len(dataset)),
            reason=[
                reason or ("not reached" if status == PENDING else "")
                for reason, status in zip(ledger.reason, ledger.status.tolist(), strict=True)
            ],
            key=ledger.key,
            status=ledger.status,
            strays=tuple(dataset.strays),
            source="arrays" if dataset.arrays is not None else "files",
            edits=self._earlier.edits if self._earlier else (),
            **dict(zip(STAMP, stats.T, strict=True)),
        )
        with closing(self):
            try:
                return rewrite_dataset(
                    self._layout,
                    self.name,
                    lambda now: self._caught_up(made, now),
                    seen=(self._version, self._earlier),
                )
            except CacheWriteError:
                # New stamps save a reading of the files and nothing else: a cache that has all
                # features need not be writable.
                if self._earlier is None:
                    raise
                same = self._caught_up(made, self._earlier)
                if not same_manifest(same, self._earlier, but=STAMP):
                    raise
                return same

    def close(self) -> None:
        """Let go of the manifest that was read; `save` does."""
        self._version.close()

    def _caught_up(self, made: Manifest, current: Manifest | None) -> Manifest:
        """Return what was made with what others did to the dataset since this run began."""
        if current is None or current.root != made.root:
            current = self._earlier
        manifest = replace(made, blocks=tuple(self._all_blocks(current)))
        if current is None:
            return manifest
        if self._replay:
            return replay_edits(manifest, current)
        edited = replay_edits(manifest, later_edits(self._earlier, current))
        return replace(edited, edits=(*manifest.edits, *edited.edits))

    def _all_blocks(self, earlier: Manifest | None) -> list[Block]:
        """Return the blocks asked for, and those of earlier runs that have all the images."""
        blocks = list(self._blocks)
        kept = np.isin(self.ledger.status, (OK, DUPLICATE))
        for block in earlier.blocks if earlier else ():
            if block in blocks:
                continue
            try:
                space = open_space(self._layout, block.space)
            except CacheFormatError:
                continue  # gone or damaged, which is for `featx cache verify` to say
            if space.has([block.tap], self.ledger.key[kept]).all():
                blocks.append(block)
        return blocks


def run_report(
    name: str,
    features: Features,
    status: NDArray[np.uint8],
    seconds: float,
    *,
    stages: Sequence[Stage] = (),
    meter: Meter | None = None,
) -> dict[str, Any]:
    """Return what was counted, as `featx extract --json` prints it.

    ``images`` is the sum of ``cached``, ``extracted`` and ``failed``; an image whose bytes equal
    another's counts as cached. Where something was computed, ``meter`` adds the engine, what bound
    the run, the images computed a second, and the seconds of each part.
    """
    failed = int((status == FAILED).sum())
    extracted = max((stage.computed for stage in stages), default=0)
    plain = {block.space: block.backbone for block in features.blocks if block.view is None}
    report = {
        "dataset": name,
        "backbone": ",".join(plain.values()),
        "spec": ",".join(plain),
        "images": len(status),
        "cached": len(status) - failed - extracted,
        "extracted": extracted,
        "failed": failed,
        "duplicates": int((status == DUPLICATE).sum()),
        "seconds": round(seconds, 3),
        "images_per_s": round(len(status) / seconds, 1),
    }
    if meter is not None and extracted:
        report |= {
            "engine": ",".join(dict.fromkeys(stage.engine for stage in stages if stage.engine)),
            "extracted_per_s": round(extracted / meter.span_s, 1),
            "binds": meter.binds,
            **meter.seconds,
        }
    return report


def _stat(dataset: ImageDataset) -> NDArray[np.int64]:
    """Return the stamp of each file, shape (n, 5), -1 where there is none."""
    nothing = (-1,) * len(STAMP)
    if dataset.arrays is not None:
        return np.full((len(dataset), len(STAMP)), -1, np.int64)
    stats = array("q")  # filled faster than the rows of an ndarray
    root = str(dataset.root or "")
    for path in dataset.paths:
        try:
            stats.extend(stamp_of(os.stat(os.path.join(root, path))))
        except (OSError, ValueError):
            stats.extend(nothing)
    return np.frombuffer(stats, np.int64).reshape(-1, len(STAMP))


def _root(dataset: ImageDataset) -> str:
    return str(dataset.root.resolve()) if dataset.root is not None else ""


def _labels(dataset: ImageDataset) -> NDArray[np.int32]:
    if dataset.labels is None:
        return np.full(len(dataset), -1, np.int32)
    return np.asarray(dataset.labels, np.int32)


def find_earlier(
    layout: CacheLayout, dataset: ImageDataset, name: str | None
) -> tuple[str, Manifest | None, FileVersion]:
    """Return the name of a dataset in the cache, what an earlier run wrote under it, and where."""
    chosen = name or dataset.name
    version = FileVersion(layout.dataset(chosen))
    if not version.path.is_file():
        return chosen, None, version
    try:
        earlier = read_manifest(version.path)
    except FileNotFoundError:  # deleted a moment ago
        return chosen, None, version
    except CacheFormatError as error:
        # Made again from the images, which are here; the features are found by their keys.
        _LOG.warning("replacing a damaged manifest: %s", error)
        return chosen, None, version
    if name or earlier.root == _root(dataset):
        return chosen, earlier, version
    with closing(version):
        digest = hashlib.sha256(_root(dataset).encode("utf-8", "surrogateescape")).hexdigest()
        return find_earlier(layout, dataset, f"{chosen}-{digest[:6]}")
