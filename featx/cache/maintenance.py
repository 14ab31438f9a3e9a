"""`FeatureCache`: look after a cache folder; it never computes features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache.collection import DAY_S, Collection, collect_garbage
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, FAILED, OK, manifest_names, read_manifest
from featx.cache.merging import Merge, merge_cache
from featx.cache.repairing import Repair, repair_cache
from featx.cache.space import FeatureSpace, read_spec
from featx.cache.verification import Progress, Verification, verify_cache
from featx.exceptions import CacheFormatError


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """What a space holds.

    Parameters
    ----------
    name : str
        Name of its folder.
    backbone : str
        The network.
    input_size_px : tuple of two int
        Height and width.
    rows : dict of str to int
        Number of rows by tap.
    shards : int
        Number of files.
    size_bytes : int
        Their size.
    damaged : dict of str to str
        Files that are left out, and why.
    """

    name: str
    backbone: str
    input_size_px: tuple[int, int]
    rows: dict[str, int]
    shards: int
    size_bytes: int
    damaged: dict[str, str]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a manifest says.

    Parameters
    ----------
    name, root : str
        Name, and the folder of the images.
    images, failed, classes : int
        How many inputs, how many of them failed, how many classes.
    blocks : list of str
        The features that it has, as backbone/tap.
    damaged : str
        Why it cannot be read; empty when it can.
    """

    name: str
    root: str
    images: int
    failed: int
    classes: int
    blocks: list[str]
    damaged: str = ""


class FeatureCache:
    """A cache folder.

    Parameters
    ----------
    cache : path, optional
        The folder: by default ``FEATX_CACHE``, else ``cache``.

    Examples
    --------
    >>> cache = FeatureCache("cache/")
    >>> cache.info()["datasets"]  # doctest: +SKIP
    [DatasetInfo(name='photos', ...)]
    >>> cache.verify().ok  # doctest: +SKIP
    True
    >>> cache.gc(dry_run=False)  # doctest: +SKIP
    Collection(...)
    """

    def __init__(self, cache: str | os.PathLike[str] | None = None) -> None:
        self.layout = CacheLayout.at(cache)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.layout.root

    def datasets(self) -> list[str]:
        """Return the names of the datasets."""
        return manifest_names(self.layout)

    def features(self, name: str) -> Features:
        """Open the features of a dataset; see `Features.open`."""
        return Features.open(name, cache=self.layout.root)

    def info(self) -> dict[str, Any]:
        """Return what the cache holds: lists of `SpaceInfo` and `DatasetInfo`, and its size."""
        spaces, unreadable = [], {}
        folders = sorted(self.layout.spaces.iterdir()) if self.layout.spaces.is_dir() else []
        for folder in folders:
            try:
                spaces.append(self._space(folder))
            except (CacheFormatError, FileNotFoundError) as error:
                unreadable[folder.name] = str(error)
        return {
            "cache": str(self.layout.root),
            "spaces": spaces,
            "unreadable_spaces": unreadable,
            "datasets": [self._dataset(name) for name in self.datasets()],
            "size_bytes": sum(space.size_bytes for space in spaces),
        }

    def verify(
        self, *, workers: int | None = None, progress: Progress | None = None
    ) -> Verification:
        """Read every byte again; see `featx.cache.verification.verify_cache`."""
        return verify_cache(self.layout, workers=workers, progress=progress)

    def repair(
        self,
        *,
        dry_run: bool = False,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Repair:
        """Remove what is damaged; see `featx.cache.repairing.repair_cache`."""
        return repair_cache(self.layout, dry_run=dry_run, workers=workers, progress=progress)

    def gc(self, *, older_than_s: float = DAY_S, dry_run: bool = True) -> Collection:
        """Remove what no dataset uses; see `featx.cache.collection.collect_garbage`."""
        return collect_garbage(self.layout, older_than_s=older_than_s, dry_run=dry_run)

    def merge(self, *others: str | os.PathLike[str]) -> list[Merge]:
        """Bring in other caches, one after the other; see `featx.cache.merging.merge_cache`."""
        return [merge_cache(self.layout, CacheLayout.at(other)) for other in others]

    def _space(self, folder: Path) -> SpaceInfo:
        space = FeatureSpace(self.layout, read_spec(folder))
        rows: dict[str, int] = {}
        for shard in space.shards:
            for tap in shard.taps:
                rows[tap] = rows.get(tap, 0) + len(shard)
        return SpaceInfo(
            name=folder.name,
            backbone=space.spec.backbone,
            input_size_px=space.spec.input_size_px,
            rows=rows,
            shards=len(space.shards),
            size_bytes=sum(shard.path.stat().st_size for shard in space.shards),
            damaged={path.name: reason for path, reason in space.damaged.items()},
        )

    def _dataset(self, name: str) -> DatasetInfo:
        try:
            manifest = read_manifest(self.layout.dataset(name))
        except CacheFormatError as error:
            return DatasetInfo(name, "", 0, 0, 0, [], damaged=str(error))
        kept = int(np.isin(manifest.status, (OK, DUPLICATE)).sum())
        return DatasetInfo(
            name=manifest.name,
            root=manifest.root,
            images=kept,
            failed=int((manifest.status == FAILED).sum()),
            classes=len(manifest.classes or ()),
            blocks=[str(block) for block in manifest.blocks],
        )
