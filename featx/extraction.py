"""`extract`: the features of a dataset, from the cache where it has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import BackboneSource, resolve_backbone
from featx.backbones.taps import parse_taps
from featx.cache.editing import kept_rows
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, OK, Block
from featx.cache.space import FeatureSpace, ShardWriter
from featx.engines.protocol import Engine
from featx.engines.select import make_engine
from featx.exceptions import BackboneError, DatasetError
from featx.images.dataset import ImageDataset
from featx.memory_store import MemoryStore
from featx.named_data import dataset_of, features_of, find_named, imported_features
from featx.progress import terminal_progress
from featx.record import DatasetRecord, find_earlier, run_report
from featx.runner import Ledger, Progress, Stage, run
from featx.spec import ImagePolicy, StorageDtype

__all__ = ["compute_features", "extract", "resolve_backbones"]

WeightsChoice = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


def extract(
    data: Any,
    *,
    backbone: str | Sequence[str] | None = None,
    weights: WeightsChoice = None,
    taps: str | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    image: ImagePolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    name: str | None = None,
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: StorageDtype = "float32",
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    progress: bool | Progress = False,
) -> Features:
    """Return the features of a dataset, computing those that the cache does not have.

    Parameters
    ----------
    data : ImageDataset, path, list of paths, or str
        The inputs: anything that `ImageDataset.from_any` takes, or the name of a dataset that was
        extracted before, whose images need not be there any more.
    backbone : str or sequence of str, optional
        Names of the catalogue, or ``file:PATH.keras``, ``"tiny"`` by default; for a dataset of
        imported features, theirs. Several share one decoding of each image.
    weights : str, path or mapping, optional
        For all backbones, or one by backbone: ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a
        path. See `featx.backbones.weights.resolve_weights`.
    taps : str or sequence of str, optional
        Where in the network, ``"avg"`` by default. See `featx.backbones.taps.parse_tap`.
    input_size : int or tuple of two int, optional
        Height and width in pixels; by default each backbone's own.
    preprocessing : str, optional
        Only for ``file:`` backbones.
    image : ImagePolicy, optional
        Decoding and resizing; bilinear stretching by default.
    cache : path, optional
        The cache folder: by default ``FEATX_CACHE``, else ``cache``.
    name : str, optional
        Name of the dataset in the cache, by default that of its folder or file.
    engine : str, default "auto"
        Key of `featx.engines.select.ENGINES`.
    batch_size : int or "auto", default "auto"
        Number of images in a batch.
    dtype : {"float32", "float16"}, default "float32"
        Type in which features are stored.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads that read and decode, by default one a core.
    progress : bool or callable, default False
        True draws a bar where standard error is a terminal; a callable gets the numbers of images
        done, in all, and failed.

    Returns
    -------
    Features
        With the blocks asked for. ``report`` holds what was counted.

    Raises
    ------
    DatasetError
        If there is nothing to read, or nothing could be read.
    UnknownNameError, WeightsError, BackboneError
        If a backbone cannot be built.
    CacheError
        If the cache cannot be written, or a manifest or specification in it is damaged.
    ImageError
        With ``on_error="raise"``.

    Examples
    --------
    >>> feats = extract("photos/", backbone="tiny")  # doctest: +SKIP
    >>> feats.report["extracted"], feats.X.shape  # doctest: +SKIP
    (245, (245, 1280))
    """
    started = time.perf_counter()
    layout = CacheLayout.at(cache)
    named = find_named(layout, data)
    if named is not None and named.source == "imported":
        there = imported_features(layout, named, backbone)
        seconds = time.perf_counter() - started
        there.report = {
            **run_report(named.name, [], named.status, seconds),
            "backbone": there.blocks[0].backbone,
            "spec": there.blocks[0].space,
        }
        return there
    sources = resolve_backbones(
        "tiny" if backbone is None else backbone,
        weights=weights,
        input_size=input_size,
        preprocessing=preprocessing,
    )
    tap_names = parse_taps(taps)
    spaces = [FeatureSpace(layout, source.spec(image=image, dtype=dtype)) for source in sources]
    stages = [
        _disk_stage(space, tap_names, _engine(engine, source, tap_names, batch_size))
        for space, source in zip(spaces, sources, strict=True)
    ]
    blocks = tuple(
        Block(stage.spec.backbone, tap, stage.spec.name) for stage in stages for tap in stage.taps
    )
    if named is not None:
        features = features_of(named, spaces, blocks)
        if features is not None:
            seconds = time.perf_counter() - started
            features.report = run_report(named.name, stages, named.status, seconds)
            return features
        data, name = dataset_of(named), named.name
    dataset = data if isinstance(data, ImageDataset) else ImageDataset.from_any(data)
    dataset_name, earlier = find_earlier(layout, dataset, name)
    # What a name stands for has its edits already; what a folder says has not.
    if named is None and earlier is not None and earlier.edits:
        dataset = dataset.subset(kept_rows(earlier, dataset.paths))
    record = DatasetRecord(layout, dataset, dataset_name, blocks, earlier, replay=named is None)
    try:
        with terminal_progress(progress, dataset_name) as show:
            run(
                dataset,
                stages,
                record.ledger,
                trusted=record.trusted,
                on_error=on_error,
                max_failures=max_failures,
                workers=workers,
                progress=show,
            )
    finally:
        # Also after Ctrl-C: what was read need not be read again.
        manifest = record.save()
    for space in spaces:
        if space.shards:
            space.write_spec()
    features = Features(
        replace(manifest, blocks=blocks), [stage.store for stage in stages for _ in stage.taps]
    )
    if not len(features):
        raise _nothing_readable(features)
    seconds = time.perf_counter() - started
    features.report = run_report(dataset_name, stages, manifest.status, seconds)
    return features


def _disk_stage(space: FeatureSpace, taps: tuple[str, ...], engine: Callable[[], Engine]) -> Stage:
    return Stage(
        spec=space.spec,
        taps=taps,
        store=space,
        open_engine=engine,
        open_sink=lambda made: ShardWriter(space, made.provenance()),
    )


def _engine(
    name: str, source: BackboneSource, taps: tuple[str, ...], batch_size: int | str
) -> Callable[[], Engine]:
    size = _batch_size(batch_size)
    return lambda: make_engine(name, source, taps, batch_size=size)


def _batch_size(value: int | str) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise BackboneError(f"batch_size must be 'auto' or a positive number, received {value!r}")


def resolve_backbones(
    backbone: str | Sequence[str],
    *,
    weights: WeightsChoice = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
) -> list[BackboneSource]:
    """Settle one or several backbones; see `extract` for the parameters."""
    names = [backbone] if isinstance(backbone, str) else list(dict.fromkeys(backbone))
    if not names:
        raise BackboneError("expected at least one backbone, received none")
    by_name = weights if isinstance(weights, Mapping) else dict.fromkeys(names, weights)
    unknown = set(by_name) - set(names)
    if unknown:
        raise BackboneError(
            f"weights are given for {', '.join(sorted(unknown))}, the backbones are "
            f"{', '.join(names)}"
        )
    return [
        resolve_backbone(
            name, weights=by_name.get(name), input_size=input_size, preprocessing=preprocessing
        )
        for name in names
    ]


def _nothing_readable(features: Features) -> DatasetError:
    shown = "".join(f"\n  {path}: {reason}" for path, reason in features.failed[:5])
    return DatasetError(
        f"none of the {len(features.manifest)} images of {features.name!r} could be read:{shown}"
    )


def compute_features(
    dataset: ImageDataset,
    source: BackboneSource,
    tap: str,
    *,
    image: ImagePolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep: bool = False,
    engine: str = "auto",
    batch_size: int | str = "auto",
    on_error: str = "raise",
    workers: int | None = None,
) -> tuple[NDArray[np.floating[Any]], Ledger]:
    """Return the features of images that are not to become a dataset of the cache.

    Parameters
    ----------
    dataset : ImageDataset
        The images.
    source : BackboneSource
        The backbone.
    tap : str
        Canonical name of a tap.
    image : ImagePolicy, optional
        Decoding and resizing.
    cache : path, optional
        A cache folder whose features are used; by default none.
    keep : bool, default False
        Whether new features are written to `cache`; else they stay in memory.
    engine, batch_size, on_error, workers
        As in `extract`.

    Returns
    -------
    X : ndarray of shape (m, d)
        Features of the images that could be read, in their order.
    ledger : Ledger
        What became of every image; `m` of its rows are ok or duplicate.
    """
    spec = source.spec(image=image)
    space = None if cache is None else FeatureSpace(CacheLayout.at(cache), spec)
    open_engine = _engine(engine, source, (tap,), batch_size)
    if space is not None and keep:
        stage = _disk_stage(space, (tap,), open_engine)
    else:
        memory = MemoryStore(spec, space)
        stage = Stage(
            spec=spec,
            taps=(tap,),
            store=memory,
            open_engine=open_engine,
            open_sink=lambda _: memory,
        )
    ledger = Ledger.blank(len(dataset))
    run(dataset, [stage], ledger, on_error=on_error, workers=workers)
    kept = np.isin(ledger.status, (OK, DUPLICATE))
    if not kept.any():
        return np.empty((0, 0), np.float32), ledger
    return stage.store.gather(tap, ledger.key[kept]), ledger
