"""`FeatureCache`: look after a cache folder; it never computes features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.cache.collection import DAY_S, Collection, collect_garbage
from featx.cache.features import Features
from featx.cache.layout import CacheLayout, list_folder
from featx.cache.manifest import FAILED, manifest_names, read_manifest
from featx.cache.merging import Merge, merge_cache
from featx.cache.repair import Progress, Repair, Verification, repair_cache, verify_cache
from featx.cache.space import FeatureSpace, read_spec
from featx.cache.transfer import Transfer, pull_cache, push_cache
from featx.exceptions import CacheFormatError


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """What a space holds."""

    name: str  # of its folder
    backbone: str
    input_size_px: tuple[int, int]  # height and width
    rows: dict[str, int]  # by tap
    shards: int
    size_bytes: int
    damaged: dict[str, str]  # files that are left out, and why


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a manifest says."""

    name: str
    root: str  # the folder of the images
    images: int
    failed: int
    classes: int
    blocks: list[str]  # backbone/tap
    damaged: str = ""  # why it cannot be read


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
        for folder in list_folder(self.layout.spaces):
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
        """Read every file again and compare it with its digests; nothing is written.

        Parameters
        ----------
        workers : int, optional
            Number of threads, by default one a core, 8 at most. Each holds 256 KiB of features, or
            one manifest.
        progress : callable, optional
            Called with the numbers of files done, in all, and with findings.

        Returns
        -------
        Verification
            With ``findings``: path, kind, reason and what to do, and ``ok``.

        Raises
        ------
        CacheError
            If there is no cache, or one of its folders cannot be listed.
        """
        return verify_cache(self.layout, workers=workers, progress=progress)

    def repair(
        self,
        *,
        dry_run: bool = False,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Repair:
        """Verify and remove what is damaged, so that the next extraction computes it again.

        Parameters
        ----------
        dry_run : bool, default False
            Only say what would be removed.
        workers, progress
            As in `verify`.

        Raises
        ------
        CacheWriteError
            If a file cannot be removed.
        """
        return repair_cache(self.layout, dry_run=dry_run, workers=workers, progress=progress)

    def gc(self, *, older_than_s: float = DAY_S, dry_run: bool = True) -> Collection:
        """Remove spaces, rows and parts that no dataset uses, and join shards under 8 MiB.

        Parameters
        ----------
        older_than_s : float, default 86400.0
            Shards younger than this, in seconds, are left alone: an extraction writes its dataset
            last. Parts of datasets are left alone for an hour at least.
        dry_run : bool, default True
            Only say what would go.

        Raises
        ------
        CacheError
            If there is no cache, or a manifest cannot be read, so that its use is not known.
        CacheWriteError
            If a file cannot be written or removed.
        """
        return collect_garbage(self.layout, older_than_s=older_than_s, dry_run=dry_run)

    def merge(self, *others: str | os.PathLike[str]) -> list[Merge]:
        """Copy what other caches have and this one has not; nothing is written there.

        Raises
        ------
        CacheError
            If one of them is no cache, or is this very one.
        CacheWriteError
            If something cannot be written. What was copied before is kept; run it again.
        """
        return [merge_cache(self.layout, CacheLayout.at(other)) for other in others]

    def push(self, address: str) -> Transfer:
        """Copy what this cache has and a store lacks into the store.

        Parameters
        ----------
        address : str
            Of a folder in a bucket, such as ``s3://bucket/cache``, ``gs://`` or ``az://``, or
            ``file:///``. Needs the extra ``remote``; credentials come from the environment.

        Raises
        ------
        CacheError
            If there is no cache, or the address is of no store that can be written.
        StoreError
            If the store does not take something. What was copied before is kept; run it again.
        """
        return push_cache(self.layout, address)

    def pull(self, address: str) -> Transfer:
        """Copy what a store has and this cache lacks into this cache.

        Parameters
        ----------
        address : str
            As for `push`.

        Raises
        ------
        CacheError
            If there is no cache in the store, or the address is of no store that can be listed.
        CacheWriteError
            If something cannot be written. What was copied before is kept; run it again.
        StoreError
            If the store does not give something. What was copied before is kept; run it again.
        """
        return pull_cache(self.layout, address)

    def _space(self, folder: Path) -> SpaceInfo:
        space = FeatureSpace(self.layout, read_spec(folder))
        paths = space.paths
        return SpaceInfo(
            name=folder.name,
            backbone=space.spec.backbone,
            input_size_px=space.spec.input_size_px,
            rows=space.rows,
            shards=len(paths),
            size_bytes=sum(path.stat().st_size for path in paths),
            damaged={path.name: reason for path, reason in space.damaged.items()},
        )

    def _dataset(self, name: str) -> DatasetInfo:
        try:
            manifest = read_manifest(self.layout.dataset(name))
        except CacheFormatError as error:
            return DatasetInfo(name, "", 0, 0, 0, [], damaged=str(error))
        return DatasetInfo(
            name=manifest.name,
            root=manifest.root,
            images=len(manifest.usable),
            failed=int((manifest.status == FAILED).sum()),
            classes=len(manifest.classes or ()),
            blocks=[str(block) for block in manifest.blocks],
        )
