"""`extract`: the features of a dataset, from the cache where it has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.source import BackboneSource
from featx.cache.editing import kept_rows
from featx.cache.features import Features
from featx.cache.layout import CacheLayout
from featx.cache.manifest import DUPLICATE, OK, Manifest
from featx.cache.space import FeatureSpace, ShardWriter
from featx.data_report import data_report, missing_files
from featx.engines.protocol import Engine
from featx.exceptions import CacheError, DatasetError
from featx.images.dataset import ImageDataset
from featx.images.split_names import SplitNames
from featx.job import (
    ExtractionJob,
    WeightsChoice,
    engine_opener,
    engines_folder,
    prepare,
    view_specs,
)
from featx.memory_store import MemoryStore
from featx.meter import Meter
from featx.named_data import dataset_of, features_of, imported_features
from featx.pipeline import Sink, Stage
from featx.progress import terminal_progress
from featx.record import DatasetRecord, FeaturesGone, find_earlier, run_report
from featx.runner import Ledger, Progress, run
from featx.spec import ImagePolicy, Precision, StorageDtype, ViewPolicy

_ATTEMPTS = 5


def extract(
    data: Any,
    *,
    backbone: str | Sequence[str] | None = None,
    weights: WeightsChoice = None,
    taps: str | Sequence[str] | None = None,
    input_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    trust: bool = False,
    image: ImagePolicy | None = None,
    views: int = 0,
    view_policy: str | ViewPolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    name: str | None = None,
    engine: str = "auto",
    batch_size: int | str = "auto",
    dtype: StorageDtype = "float32",
    precision: Precision = "f32",
    splits: SplitNames = None,
    root: str | os.PathLike[str] | None = None,
    multilabel: bool = False,
    on_error: str = "skip",
    max_failures: int | None = None,
    workers: int | None = None,
    isolate: bool | None = None,
    progress: bool | Progress = False,
) -> Features:
    """Return the features of a dataset, computing those that the cache does not have.

    Parameters
    ----------
    data : ImageDataset, path, list of paths, or str
        The inputs: anything that `ImageDataset.from_any` takes, or the name of a dataset that was
        extracted before, whose images need not be there any more.
    backbone : str or sequence of str, optional
        Names of the catalogue, ``file:PATH.keras``, ``savedmodel:FOLDER`` or ``hub:FOLDER``;
        ``"tiny"`` by default, for a dataset of imported features theirs. Several share one
        decoding of each image.
    weights : str, path or mapping, optional
        For all backbones, or one by backbone: ``"imagenet"``, ``"bundled"``, ``"random:SEED"`` or a
        path. See `featx.backbones.weights.resolve_weights`.
    taps : str or sequence of str, optional
        Where in the network, ``"avg"`` by default. See `featx.backbones.taps.parse_tap`.
    input_size : int or tuple of two int, optional
        Height and width in pixels; by default each backbone's own.
    preprocessing : str, optional
        Only for backbones of one's own, see `featx.backbones.source.resolve_backbone`.
    trust : bool, default False
        Needed for ``savedmodel:`` backbones, whose graph may do anything.
    image : ImagePolicy, optional
        Decoding and resizing; bilinear stretching by default.
    views : int, default 0
        Number of seeded augmentations of each image that are computed beside the image itself, for
        `Features.augmented` and for averaging at test time.
    view_policy : str or ViewPolicy, optional
        How they are drawn: a name such as ``"flip-crop-colour-1"``, the default, or with a seed.
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
    precision : {"f32", "mixed"}, default "f32"
        Arithmetic of the forward pass; ``mixed`` is half precision with Keras, with slightly other
        features that have a space of their own. It is meant for GPUs and was tested on a CPU only.
    splits : mapping of str to str, "none" or None, default None
        What names of splits mean, such as ``{"pilot": "test"}``, beside the usual names of train,
        val and test; ``"none"``: no folder is a split.
    root : path, optional
        Folder that relative paths of a table start from, by default the table's.
    multilabel : bool, default False
        Whether the columns of a table have to be labels, see `ImageDataset.from_csv`.
    on_error : {"skip", "raise"}, default "skip"
        Whether the first image that cannot be read ends the run.
    max_failures : int, optional
        End the run when more images than this cannot be read.
    workers : int, optional
        Number of threads or processes that read and decode, by default one a core.
    isolate : bool, optional
        Whether images are decoded in processes of their own, which survives a decoder that crashes;
        by default where there are many. See `featx.images.loader.load_images`.
    progress : bool or callable, default False
        True draws a bar where standard error is a terminal; a callable gets the numbers of images
        done, in all, and failed.

    Returns
    -------
    Features
        With the blocks asked for. ``report`` holds what was counted, and the seconds of each part.

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
    EngineError
        If the forward pass fails.
    KeyboardInterrupt
        When interrupted, after what was computed has been written; its text says what is kept.

    Examples
    --------
    >>> feats = extract("photos/", backbone="tiny")  # doctest: +SKIP
    >>> feats.report["extracted"], feats.X.shape  # doctest: +SKIP
    (245, (245, 1280))
    """
    started = time.perf_counter()
    job = prepare(
        data,
        backbone=backbone,
        weights=weights,
        taps=taps,
        input_size=input_size,
        preprocessing=preprocessing,
        trust=trust,
        image=image,
        views=views,
        view_policy=view_policy,
        cache=cache,
        engine=engine,
        batch_size=batch_size,
        dtype=dtype,
        precision=precision,
        splits=splits,
        root=root,
        multilabel=multilabel,
    )
    complete = find_complete(job, backbone)
    if complete is not None:
        assert job.named is not None
        seconds = time.perf_counter() - started
        complete.report = run_report(job.named.name, complete, job.named.status, seconds)
        if not job.imported:
            complete.origins = dict(job.origins)
            job.remember_origins()
        complete.report |= data_report(job.named)
        return complete
    dataset, record = open_record(job, data, name)
    meter = Meter()
    if not record.covers(job.blocks):
        for stage in job.stages:
            stage.reuse(record.ledger.key[record.trusted])
    try:
        with terminal_progress(progress, record.name, meter) as show:
            manifest = _until_kept(
                job,
                record,
                lambda: run(
                    dataset,
                    job.stages,
                    record.ledger,
                    trusted=record.trusted,
                    on_error=on_error,
                    max_failures=max_failures,
                    workers=workers,
                    isolate=isolate,
                    progress=show,
                    meter=meter,
                ),
            )
        meter.stop()
    except BaseException as error:
        # What was read need not be read again; what went wrong first is what is reported.
        with suppress(Exception):
            record.save(job, complete=False)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_kept(job, record.ledger)) from error
        raise
    for space in job.spaces:
        if space.shards:
            space.write_spec()
    features = Features(
        replace(manifest, blocks=job.blocks),
        [stage.store for stage in job.stages for _ in stage.taps],
        origins=job.origins,
    )
    job.remember_origins()
    if not len(features):
        raise _nothing_readable(features)
    seconds = time.perf_counter() - started
    features.report = run_report(
        record.name, features, manifest.status, seconds, stages=job.stages, meter=meter
    )
    features.report |= data_report(manifest, dataset)
    return features


def find_complete(job: ExtractionJob, backbone: Any = None) -> Features | None:
    """Return the features of a named dataset that has all that is asked for, else None."""
    if job.named is None:
        return None
    if job.imported:
        return imported_features(job.layout, job.named, backbone)
    return features_of(job.named, job.spaces, job.blocks)


def open_record(
    job: ExtractionJob, data: Any, name: str | None
) -> tuple[ImageDataset, DatasetRecord]:
    """Return the images that a job is about, and what is known of them from earlier runs."""
    named = job.named
    if named is not None:
        data, name = dataset_of(named), named.name
    if named is None:
        data = ImageDataset.from_any(data, **job.reading)
    dataset: ImageDataset = data
    dataset_name, earlier, version = find_earlier(job.layout, dataset, name)
    # What a name stands for has its edits already; what a folder says has not.
    if named is None and earlier is not None and earlier.edits:
        kept = dataset.subset(kept_rows(earlier, dataset.paths))
        dataset = replace(
            kept,
            strays=dataset.strays,
            stray_reasons=dataset.stray_reasons,
            empty_classes=dataset.empty_classes,
        )
    record = DatasetRecord(
        job.layout,
        dataset,
        dataset_name,
        job.blocks,
        earlier,
        version=version,
        replay=named is None,
        automatic=name is None,
    )
    return dataset, record


def _until_kept(job: ExtractionJob, record: DatasetRecord, attempt: Callable[[], None]) -> Manifest:
    """Run and write the manifest; run again for what others removed meanwhile."""
    for _ in range(_ATTEMPTS):
        attempt()
        with suppress(FeaturesGone):
            return record.save(job)
    raise CacheError(
        f"features of {record.name!r} were removed {_ATTEMPTS} times while they were extracted: "
        "run this again when nobody cleans the cache (`featx cache gc --older-than 0`)"
    )


def _kept(job: ExtractionJob, ledger: Ledger) -> str:
    reached = ledger.key[ledger.key.any(axis=1)]
    done = np.ones(len(reached), np.bool_)
    for stage in job.stages:
        done &= ~stage.missing(reached)
    return f"{int(done.sum()):,} of {len(ledger.key):,} images have their features in the cache"


def _nothing_readable(features: Features) -> DatasetError:
    shown = "; ".join(f"{path[-80:]}: {reason[:100]}" for path, reason in features.failed[:3])
    where = missing_files(features.manifest)
    return DatasetError(
        f"none of the {len(features.manifest)} images of {features.name!r} could be read: {shown}"
        + (f"; {where}" if where else "")
    )


def compute_features(
    dataset: ImageDataset,
    source: BackboneSource,
    tap: str,
    *,
    image: ImagePolicy | None = None,
    views: int = 0,
    view_policy: str | ViewPolicy | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep: bool = False,
    engine: str = "auto",
    batch_size: int | str = "auto",
    on_error: str = "raise",
    workers: int | None = None,
    engines: dict[str, Engine] | None = None,
) -> tuple[list[NDArray[np.floating[Any]]], Ledger]:
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
    views, view_policy
        As in `extract`.
    cache : path, optional
        A cache folder whose features are used; by default none.
    keep : bool, default False
        Whether new features are written to `cache`; else they stay in memory.
    engine, batch_size, on_error, workers
        As in `extract`.
    engines : dict, optional
        Where the engine is kept for the next call with the same `source`, `tap` and `engine`.

    Returns
    -------
    X : list of ndarray of shape (m, d)
        Features of the images that could be read, in their order, and then of each view.
    ledger : Ledger
        What became of every image; `m` of its rows are ok or duplicate.
    """
    layout = None if cache is None else CacheLayout.at(cache)
    plain = source.spec(image=image)
    opener = engine_opener(
        engine,
        source,
        (tap,),
        batch_size=batch_size,
        folder=engines_folder(layout, writing=keep),
    )
    if engines is not None:
        opener = partial(_kept_engine, engines, opener)
    stages = []
    for spec in (plain, *view_specs(plain, views, view_policy)):
        space = None if layout is None else FeatureSpace(layout, spec)
        sink = space if space is not None and keep else MemoryStore(spec, space)
        stages.append(
            Stage(
                spec=spec,
                taps=(tap,),
                store=sink,
                open_engine=opener,
                open_sink=partial(_sink, sink),
            )
        )
    ledger = Ledger.blank(len(dataset))
    run(dataset, stages, ledger, on_error=on_error, workers=workers)
    kept = np.isin(ledger.status, (OK, DUPLICATE))
    if not kept.any():
        return [np.empty((0, 0), np.float32) for _ in stages], ledger
    return [stage.store.gather(tap, ledger.key[kept]) for stage in stages], ledger


def _kept_engine(engines: dict[str, Engine], opener: Callable[[], Engine]) -> Engine:
    if "engine" not in engines:
        engines["engine"] = opener()
    return engines["engine"]


def _sink(store: FeatureSpace | MemoryStore, engine: Engine) -> Sink:
    if isinstance(store, FeatureSpace):
        return ShardWriter(store, engine.provenance())
    return store
