"""Datasets by name: what an earlier extraction wrote down stands for the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import Block, Manifest, find_manifest, manifest_names
from featx.cache.space import FeatureSpace
from featx.exceptions import DatasetError, UnknownNameError
from featx.images.dataset import ImageDataset
from featx.images.split_names import SplitNames, read_splits


def find_named(layout: CacheLayout, data: Any, splits: SplitNames = None) -> Manifest | None:
    """Return the manifest that `data` names, or None when it is something else.

    Raises
    ------
    UnknownNameError
        If `data` is neither a path nor a dataset of the cache.
    DatasetError
        If it has a split that means none of train, val and test, and `splits` does not say which.
    """
    if not isinstance(data, str) or Path(data).expanduser().exists():
        return None
    if layout.dataset(data).is_file():
        manifest = find_manifest(layout, data)
        return replace(manifest, split=read_splits(manifest.split, splits, what=repr(data))[0])
    if any(mark in data for mark in "/\\.*"):
        return None  # a path that does not exist, for the dataset to report
    raise UnknownNameError(
        "folder, file or extracted dataset",
        data,
        manifest_names(layout),
        hint=f"Expected a path that exists, or a dataset in the cache {layout.root}",
    )


def features_of(
    manifest: Manifest, spaces: Sequence[FeatureSpace], blocks: tuple[Block, ...]
) -> Features | None:
    """Return the features of a named dataset, or None when some are not in the cache."""
    stores = {space.spec.name: space for space in spaces}
    features = Features(replace(manifest, blocks=blocks), [stores[block.space] for block in blocks])
    keys = features.keys
    complete = all(stores[block.space].has([block.tap], keys).all() for block in blocks)
    return features if complete and len(features) else None


def imported_features(
    layout: CacheLayout, manifest: Manifest, backbone: str | Sequence[str] | None
) -> Features:
    """Return the features of an imported dataset.

    Raises
    ------
    DatasetError
        If others are asked for: there are no images to compute them from.
    """
    there = {block.backbone for block in manifest.blocks}
    asked = there if backbone is None else {backbone} if isinstance(backbone, str) else {*backbone}
    if not asked <= there:
        raise DatasetError(
            f"{manifest.name!r} was imported: it has features of {', '.join(sorted(there))}, and "
            f"no images for {', '.join(sorted(asked - there))} to look at; leave -b (backbone) out"
        )
    return Features.open(manifest.name, cache=layout.root)


def dataset_of(manifest: Manifest) -> ImageDataset:
    """Return the images of a named dataset, where they were.

    Raises
    ------
    DatasetError
        If they were arrays, which a name cannot bring back.
    """
    if manifest.source == "arrays":
        raise DatasetError(
            f"{manifest.name!r} was made from arrays: features that it does not have yet need the "
            "arrays again"
        )
    return ImageDataset(
        name=manifest.name,
        root=Path(manifest.root) if manifest.root else None,
        paths=tuple(manifest.path),
        classes=manifest.classes,
        labels=None if manifest.classes is None else manifest.label,
        groups=tuple(manifest.group) if any(manifest.group) else None,
        splits=tuple(manifest.split) if any(manifest.split) else None,
        strays=manifest.strays,
    )
